"""Checkpoints that others released, read and written: OpenVLA, OpenVLA-OFT and their relatives."""
