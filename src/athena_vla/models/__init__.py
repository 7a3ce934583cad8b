"""Samples become loss and actions. torch; normalised units in [-1, 1]."""
