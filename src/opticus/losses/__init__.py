"""Loss functions and the one-phase objective that most papers need."""
