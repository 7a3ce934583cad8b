"""The public names for type checkers; tests/test_public.py compares this file with the table in __init__.py."""

from . import bench, check, evaluate, export, finetune, merge, plan, quantize, serve, sweep
from .bundle import Bundle
from .control.runtime import Runtime, RuntimeConfig
from .control.safety import SafetyFilter
from .control.teleoperator import Teleoperator, Wish
from .dataset.dataset import Dataset
from .dataset.normalize import Normalizer
from .embodiment import ActionChunk, Camera, Channel, Embodiment, Joint, Observation, known_robots
from .embodiment import load as load_robot
from .errors import AthenaError
from .policy import Policy
from .recordings.episode import Episode
from .recordings.formats import open_recording
from .version import __version__
from .wire.client import RemotePolicy
from .wire.server import PolicyServer

EXPERIMENTAL: frozenset[str]

__all__ = [
    "ActionChunk",
    "AthenaError",
    "Bundle",
    "Camera",
    "Channel",
    "Dataset",
    "Embodiment",
    "Episode",
    "Joint",
    "Normalizer",
    "Observation",
    "Policy",
    "PolicyServer",
    "RemotePolicy",
    "Runtime",
    "RuntimeConfig",
    "SafetyFilter",
    "Teleoperator",
    "Wish",
    "__version__",
    "bench",
    "check",
    "evaluate",
    "export",
    "finetune",
    "known_robots",
    "load_robot",
    "merge",
    "open_recording",
    "plan",
    "quantize",
    "serve",
    "sweep",
]
