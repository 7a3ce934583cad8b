"""A robot's file from its published URDF or MJCF."""
