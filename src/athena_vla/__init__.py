"""From robot recordings to a safe, fast vision-language-action policy on the robot."""

__version__ = "0.1.0"
