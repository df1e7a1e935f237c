"""Modules that three papers or more share, without any switch."""
