"""Recordings as they are: episodes with their streams, the formats that hold them, and how streams meet on one clock."""
