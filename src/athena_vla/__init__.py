"""From robot recordings to a safe, fast vision-language-action policy on the robot.

`__all__` is the public interface: each name has this one path, and docs/api.md says what it is. Names are loaded when
they are first asked for, so that the robot's side needs no torch. What starts with `_` or is not listed may change.
"""
# Names are loaded when they are first asked for; __init__.pyi says what they are.
# pyright: reportUnsupportedDunderAll=false

import importlib

from athena_vla.moved import install
from athena_vla.version import __version__

_HOMES = {  # public name -> module and attribute, or a module alone
    "ActionChunk": "embodiment:ActionChunk",
    "AthenaError": "errors:AthenaError",
    "Bundle": "bundle:Bundle",
    "Camera": "embodiment:Camera",
    "Channel": "embodiment:Channel",
    "Dataset": "dataset.dataset:Dataset",
    "Embodiment": "embodiment:Embodiment",
    "Episode": "recordings.episode:Episode",
    "Joint": "embodiment:Joint",
    "Normalizer": "dataset.normalize:Normalizer",
    "Observation": "embodiment:Observation",
    "Policy": "policy:Policy",
    "PolicyServer": "wire.server:PolicyServer",
    "RemotePolicy": "wire.client:RemotePolicy",
    "Runtime": "control.runtime:Runtime",
    "RuntimeConfig": "control.runtime:RuntimeConfig",
    "SafetyFilter": "control.safety:SafetyFilter",
    "Teleoperator": "control.teleoperator:Teleoperator",
    "Wish": "control.teleoperator:Wish",
    "bench": "bench",
    "check": "check",
    "evaluate": "evaluate",
    "export": "export",
    "finetune": "finetune",
    "known_robots": "embodiment:known_robots",
    "load_robot": "embodiment:load",
    "merge": "merge",
    "open_recording": "recordings.formats:open_recording",
    "plan": "plan",
    "quantize": "quantize",
    "serve": "serve",
    "sweep": "sweep",
}
EXPERIMENTAL = frozenset(
    {"Channel", "PolicyServer", "Runtime", "RuntimeConfig", "Teleoperator", "Wish", "plan", "sweep"}
)
"""Public names that may still change in a minor version; docs/api.md marks them."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """A public name, from its home. Raises `AttributeError` for others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'athena_vla' has no public name '{name}'; docs/api.md lists them")
    module, _, attribute = _HOMES[name].partition(":")
    home = importlib.import_module(f"athena_vla.{module}")
    return getattr(home, attribute) if attribute else home


def __dir__() -> list[str]:
    return sorted(__all__)


install()  # old module names, until 0.3.0
