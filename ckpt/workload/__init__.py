"""What a study saves: models, the layout of their states, seeded values and real weights."""
