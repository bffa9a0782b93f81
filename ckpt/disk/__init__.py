"""Files on disk: mounts, the page cache, direct I/O, durable files, and the commit of a checkpoint."""
