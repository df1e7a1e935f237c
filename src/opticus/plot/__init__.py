"""Results and figures as pictures and as self-contained HTML."""
