"""Computes what each method measured from frames: settings, statistics, differences and caveats."""
