"""A series of checkpoints in one directory, one for every saved step, and `latest`, a link to the newest."""
