"""What a target lies on: the filesystem with its version, servers, layout and devices."""
