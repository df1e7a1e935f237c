"""Sample -> Sample: geometry as one 3x3 matrix, photometry as functions; and Prepare -> network input."""
