"""How a model's state is written and read back: states, strategies, storage, commits.

Useful on its own. Importing it loads neither torch nor tensorstore: a login node can plan without them.
"""
