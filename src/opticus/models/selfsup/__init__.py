"""Methods that learn from pictures without labels."""
