"""Runs studies: plans the jobs of a study's file, submits them, and measures on the node, one timing log per job."""
