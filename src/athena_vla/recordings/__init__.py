"""Recordings as they are: episodes with their streams, the formats that hold them, and one clock for all streams."""
