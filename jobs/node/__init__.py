"""What runs on the nodes: a job, its processes, its trials, and what it records."""
