"""The strategies, one per module. Modules whose names begin with `_` are shared, and define none."""
