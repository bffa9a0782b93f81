"""Frames to what each method measured: settings, statistics, differences and caveats."""
