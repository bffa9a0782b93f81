"""Everything on one page that opens anywhere."""
