"""Weights as they are stored and multiplied: safetensors, packed integers, NF4, the GEMV kernel."""
