"""Stage 2: samples become loss and actions. torch; normalised units in [-1, 1]."""
