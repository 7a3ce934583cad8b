"""Training that makes instructions count: pairs of one scene in a batch, and a margin between instructions."""
