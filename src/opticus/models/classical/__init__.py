"""Systems without a network: what the learned ones are compared with."""
