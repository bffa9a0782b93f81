"""Callbacks with which other libraries' training loops save by a Checkpointer; a module imports one library."""
