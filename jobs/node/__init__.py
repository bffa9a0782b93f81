"""Runs a job on its nodes: processes, trials, and the records of what was measured."""
