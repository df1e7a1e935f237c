"""One paper, one file; the folders are families."""
