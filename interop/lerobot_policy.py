"""Run by interop/run.py in an environment with lerobot and the plug-in: a bundle as a policy of LeRobot.

    python lerobot_policy.py BUNDLE WORK

LeRobot finds the plug-in by itself, opens the folder by its own factory, and plays its own evaluation rollout in two
environments. Every action is compared with what the bundle answers to the frame that the environment gave.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins

from athena_vla.bundle import Bundle
from athena_vla.embodiment import Observation
from athena_vla.errors import AthenaError
from athena_vla.policy import Policy

STEPS = 20
TASKS = ("reach the red ball", "squat a bit")


class StandIn(gym.Env[Any, Any]):
    """Random pictures and poses, remembered; ends after `STEPS` steps."""

    task_description = TASKS[0]
    task = TASKS[0]
    _max_episode_steps = STEPS

    def __init__(self, robot: Any, number: int) -> None:
        self.robot, self.task_description, self.task = robot, TASKS[number], TASKS[number]
        box = gym.spaces.Box
        pictures = {c.name: box(0, 255, (c.height, c.width, 3), np.uint8) for c in robot.cameras}
        poses = box(-10, 10, (robot.state_dim,), np.float64)
        self.observation_space = gym.spaces.Dict({"pixels": gym.spaces.Dict(pictures), "agent_pos": poses})
        self.action_space = box(-10, 10, (robot.action_dim,), np.float32)
        self.draw = np.random.default_rng(number)
        self.seen: list[dict[str, Any]] = []
        self.told: list[Any] = []

    def look(self) -> dict[str, Any]:
        pictures = {
            c.name: self.draw.integers(0, 256, (c.height, c.width, 3)).astype(np.uint8) for c in self.robot.cameras
        }
        self.seen.append({"pixels": pictures, "agent_pos": self.draw.uniform(self.robot.lower, self.robot.upper)})
        return self.seen[-1]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seen, self.told = [], []
        return self.look(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.told.append(np.array(action))
        ended = len(self.told) >= STEPS
        return self.look(), 0.0, ended, False, {"is_success": ended}


@EnvConfig.register_subclass("athena_stand_in")
@dataclass
class StandInConfig(EnvConfig):
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}


def main(bundle: Path, work: Path) -> None:
    register_third_party_plugins()
    assert get_policy_class("athena").name == "athena"
    from lerobot_policy_athena.folder import write_folder

    said: dict[str, Any] = {}
    direct = Policy.load(bundle)
    robot = direct.robot
    horizon = len(direct.act(Bundle.open(bundle).golden.observations[0]).positions)
    for count in (0, 3):
        folder = write_folder(bundle, work / f"policy{count}", n_action_steps=count)
        assert not list(folder.glob("*.safetensors"))
        config = PreTrainedConfig.from_pretrained(folder)
        config.pretrained_path = folder
        action = PolicyFeature(type=FeatureType.ACTION, shape=(robot.action_dim,))
        outside = StandInConfig(features={**(config.input_features or {}), "action": action})
        outside.features_map = {k: k for k in outside.features}
        policy = make_policy(config, env_cfg=outside)
        before, after = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={
                "device_processor": {"device": "cpu"},
                "rename_observations_processor": {"rename_map": {}},
            },
        )
        plain = [PolicyProcessorPipeline(steps=[]) for _ in range(2)]
        env = gym.vector.SyncVectorEnv([lambda n=n: StandIn(robot, n) for n in range(2)])
        result = rollout(env, policy, plain[0], plain[1], before, after, seeds=[0, 1])
        played = count or horizon
        compared = 0
        for number, each in enumerate(env.envs):
            own = each.unwrapped
            assert len(own.told) == STEPS
            for step in range(0, STEPS, played):
                frame = own.seen[step]
                state = frame["agent_pos"].astype(np.float32).astype(np.float64)
                rows = direct.act(Observation(frame["pixels"], state, TASKS[number])).positions[:played]
                for row, told in zip(rows, own.told[step : step + played], strict=False):
                    np.testing.assert_array_equal(told, row.astype(np.float32))
                    compared += 1
        assert compared == 2 * STEPS
        assert result["success"][:, -1].all()
        said[f"n_action_steps {count}"] = compared
    refused = []
    for change in ({}, {"task": [""]}, {"observation.state": torch.zeros(1, 3)}):
        batch: dict[str, Any] = {
            "observation.state": torch.zeros(1, robot.state_dim),
            "task": ["x"],
            **{f"observation.images.{c.name}": torch.zeros(1, 3, c.height, c.width) for c in robot.cameras},
        }
        batch |= change
        if not change:
            batch.pop(f"observation.images.{robot.cameras[0].name}")
        try:
            policy.predict_action_chunk(batch)
        except AthenaError as problem:
            refused.append(str(problem))
    assert len(refused) == 3, refused
    print(json.dumps({**said, "refused": refused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
