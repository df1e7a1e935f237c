"""Noise schedules, what a denoiser predicts, and samplers; none of it knows a network."""
