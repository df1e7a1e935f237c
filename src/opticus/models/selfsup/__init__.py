"""Methods that learn without labels."""
