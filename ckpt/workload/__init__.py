"""The states that studies save: models, their layouts, seeded values and real weights."""
