"""The training loop of a job: steps in blocks, with checkpoints off and on, and what its saves hold up."""
