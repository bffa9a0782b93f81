"""What was measured as tables, and the formats that they are written in."""
