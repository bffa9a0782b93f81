"""What runs where: a study becomes a plan, a plan becomes jobs, a job leaves a timing log."""
