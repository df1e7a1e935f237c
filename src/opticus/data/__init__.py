"""Readers of real formats, the embedded data sets, the loader and the doctor."""
