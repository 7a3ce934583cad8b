"""A training set: built from recordings, prepared, cut into windows, normalised, opened again."""
