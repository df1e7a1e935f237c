"""Target assignment and output encodings."""
