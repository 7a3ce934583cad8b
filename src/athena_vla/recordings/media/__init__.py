"""Images and videos of recordings, encoded and decoded."""
