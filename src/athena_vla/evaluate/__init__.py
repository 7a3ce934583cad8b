"""Stage 5: open loop, closed loop and comparison against baselines, with intervals."""
