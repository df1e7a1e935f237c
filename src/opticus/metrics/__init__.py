"""Official numbers as update/compute objects."""
