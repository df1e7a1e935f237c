"""Pure tensor functions: boxes, overlaps, suppression, RoI pooling, masks, resampling, schedules, collectives."""
