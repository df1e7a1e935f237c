"""opticus."""
