"""One file per strategy. A module whose name begins with `_` is shared by several and is none itself."""
