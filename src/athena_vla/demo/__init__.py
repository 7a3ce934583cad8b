"""The main job, whole: recordings in, a better, bounded, deployable policy out, with evidence."""

from athena_vla.demo.chain import DemoResult, demo
from athena_vla.demo.demo_config import DemoConfig

__all__ = ["DemoConfig", "DemoResult", "demo"]
