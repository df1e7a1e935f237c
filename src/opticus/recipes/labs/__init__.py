"""The lectures' claims, one file each: what is claimed, the trainings that check it, the number, and its picture."""
