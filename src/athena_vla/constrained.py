"""A policy held to what its robot can do: each row of a chunk is chosen among the bins within reach of the row before.

For families that choose actions from bins. Knows limits and the control step; the safety filter stays where it is, and
finds less to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from athena_vla.control.reachable import reachable_bins
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import ModelError
from athena_vla.models.loops.token_loop import TokenLoop
from athena_vla.policy import Policy, encode


@dataclass(frozen=True)
class WithinReach:
    """An actor around a policy. Raises `ModelError` where the policy's family does not choose from bins."""

    policy: Policy

    def __post_init__(self) -> None:
        if not isinstance(self.policy.loop, TokenLoop):
            raise ModelError(
                f"Policy '{self.policy.name}' (family {self.policy.loop.family}) does not choose its actions from "
                "bins, so nothing can be masked; its chunks are bounded by the safety filter alone."
            )

    @property
    def robot(self) -> Embodiment:
        return self.policy.robot

    def act(self, observation: Observation, /) -> ActionChunk:
        return self.act_batch([observation])[0]

    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """The next joint targets, within reach. Raises `InvalidObservation`."""
        policy, loop = self.policy, self._loop
        inputs = loop.collate([encode(o, policy.robot, policy.normalizer) for o in observations])

        def allowed(rows: Float[np.ndarray, "b r d"]) -> Bool[np.ndarray, "b d bins"]:
            return np.stack([self._allowed(r, o.state) for r, o in zip(rows, observations, strict=True)])

        unit = loop.decode_among(policy.engine, inputs, allowed)
        return [
            ActionChunk(policy.normalizer.decode(row, o.state), policy.robot.action_names, self._step, o.time)
            for row, o in zip(unit, observations, strict=True)
        ]

    @property
    def _loop(self) -> TokenLoop:
        assert isinstance(self.policy.loop, TokenLoop)
        return self.policy.loop

    @property
    def _step(self) -> float:
        return 1.0 / self.policy.robot.control_hz

    def _allowed(self, rows: Float[np.ndarray, "r d"], state: np.ndarray) -> Bool[np.ndarray, "d bins"]:
        """From the measured pose, whose velocity nobody told us, and from the rows after it with theirs."""
        robot, normalizer = self.policy.robot, self.policy.normalizer
        joints = robot.action_index
        bins = normalizer.decode(np.repeat(self._loop.bins[:, None], len(joints), axis=1), state).T
        poses = [robot.command_of(state.astype(np.float64))]
        for row in normalizer.decode(rows, state)[-2:] if len(rows) else ():
            pose = poses[-1].copy()
            pose[joints] = row
            poses.append(pose)
        velocity = (poses[-1] - poses[-2]) / self._step if len(poses) > 1 else None
        return reachable_bins(robot, joints, bins, poses[-1], velocity, seconds=self._step)
