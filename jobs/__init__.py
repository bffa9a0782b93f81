"""Runs studies: makes a plan of a study's file, submits its jobs, and writes a timing log for each."""
