"""Fetching, reading, renaming, strict loading, identifying and saving of weights."""
