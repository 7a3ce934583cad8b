"""From robot recordings to a safe, fast vision-language-action policy on the robot."""

from athena_vla.moved import install
from athena_vla.version import __version__

__all__ = ["__version__"]

install()  # old module names, until 0.2.0
