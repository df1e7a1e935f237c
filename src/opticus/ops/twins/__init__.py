"""Literal loop twins of the vectorised ops: the definition, written down; used by property tests and `opticus prove`."""
