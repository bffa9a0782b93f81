"""A series of checkpoints in one directory, one for each saved step, and `latest`, a link to the newest."""
