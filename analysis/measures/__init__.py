"""Computes what every method measured from frames: settings, statistics, differences and caveats."""
