"""Segments of an episode with words: from signals, from motion alone, phrased and paraphrased."""
