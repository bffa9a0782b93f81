"""Where jobs go: Slurm, or processes on this machine; how they are submitted, and what the queue says of them."""
