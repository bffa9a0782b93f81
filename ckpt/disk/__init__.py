"""What a directory lies on: mounts, page cache, direct I/O, durable files, and the commit of a checkpoint."""
