"""Submits jobs to Slurm, or runs them as processes on this machine, and reads their state in the queue."""
