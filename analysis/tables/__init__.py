"""Tables of the measurements, and the formats in which they are written."""
