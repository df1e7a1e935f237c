"""The training loop and what it keeps: optimisers, averages, state, log."""
