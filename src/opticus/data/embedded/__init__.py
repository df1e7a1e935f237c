"""Data sets built deterministically out of real material that ships inside dependencies."""
