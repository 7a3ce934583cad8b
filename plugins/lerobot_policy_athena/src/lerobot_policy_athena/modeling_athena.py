"""The policy that LeRobot calls: its tensors become observations, a chunk of the bundle becomes its actions."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from athena_vla.bundle import Bundle
from athena_vla.embodiment import Observation
from athena_vla.errors import BundleError, ModelError
from athena_vla.policy import Policy
from lerobot_policy_athena.configuration_athena import AthenaConfig
from lerobot_policy_athena.folder import ACTION, IMAGES, STATE, features


class AthenaPolicy(PreTrainedPolicy):
    """A bundle as it is served: physical units in and out."""

    config_class = AthenaConfig
    name = "athena"

    def __init__(self, config: AthenaConfig, **_: Any) -> None:
        super().__init__(config)
        if not config.bundle:
            raise BundleError("No bundle was named: python -m lerobot_policy_athena BUNDLE FOLDER, then the folder.")
        bundle = Bundle.open(Path(config.bundle))
        if config.bundle_hash not in ("", bundle.hash):
            raise BundleError(
                f"'{config.bundle}' holds bundle {bundle.hash}; this folder was made for {config.bundle_hash}."
            )
        self.policy = Policy.load(Path(config.bundle), config.backend, device=config.on)
        self.robot = self.policy.robot
        config.input_features, own = features(self.robot)
        asked = (config.output_features or own).get(ACTION, own[ACTION])
        if tuple(asked.shape) != tuple(own[ACTION].shape):
            names = ", ".join(self.robot.action_names)
            raise ModelError(f"Actions of {asked.shape[0]} numbers are wanted; the bundle drives {names}.")
        config.output_features = own
        if config.n_action_steps < 0:
            raise ModelError(f"n_action_steps is a number of rows, 0 for a whole chunk; it is {config.n_action_steps}.")
        self._place = nn.Parameter(torch.zeros(1), requires_grad=False)  # LeRobot asks parameters where it should go
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **more: Any
    ) -> "AthenaPolicy":
        """There are no weights in the folder: its config names the bundle."""
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path)
        if not isinstance(config, AthenaConfig):
            raise ModelError(f"'{pretrained_name_or_path}' is a policy of type '{config.type}', not athena.")
        return cls(config).eval()

    def reset(self) -> None:
        """Forget the chunks that are being played."""
        self._queue: deque[Tensor] = deque()

    def get_optim_params(self) -> dict[str, Any]:
        raise NotImplementedError("A bundle is not trained by LeRobot: take `athena train`.")

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        raise NotImplementedError("A bundle is not trained by LeRobot: take `athena train`.")

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """[b, horizon, action] in physical units."""
        chunks = self.policy.act_batch(self.observations(batch))
        rows = np.stack([np.asarray(chunk.positions, dtype=np.float32) for chunk in chunks])
        return torch.from_numpy(rows).to(self._place.device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **more: Any) -> Tensor:
        """[b, action] The next row; a new chunk is asked for where the last one was played."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **more)
            count = self.config.n_action_steps or chunk.shape[1]
            self._queue.extend(chunk[:, : min(count, chunk.shape[1])].unbind(dim=1))
        return self._queue.popleft()

    def observations(self, batch: dict[str, Any]) -> list[Observation]:
        """One for each item. Raises `ModelError` with what the batch lacks."""
        cameras = self.robot.camera_names
        missing = [IMAGES + c for c in cameras if IMAGES + c not in batch] + [STATE] * (STATE not in batch)
        if missing:
            there = ", ".join(k for k in batch if k.startswith("observation")) or "none"
            raise ModelError(f"The observation lacks {', '.join(missing)}; it has {there}. --rename_map gives names.")
        states = batch[STATE].detach().cpu().numpy()
        if states.ndim != 2 or states.shape[1] != self.robot.state_dim:
            raise ModelError(
                f"{STATE} has shape {list(states.shape)}; the bundle reads {', '.join(self.robot.state_names)}."
            )
        images = {c: pixels(batch[IMAGES + c], IMAGES + c) for c in cameras}
        said = batch.get("task")
        tasks: Sequence[str] = [said] * len(states) if isinstance(said, str) else list(said or ())
        if len(tasks) != len(states) or not all(tasks):
            raise ModelError("The observation has no task; the policy does what an instruction says.")
        return [
            Observation({c: images[c][i] for c in cameras}, states[i].astype(np.float64), task)
            for i, task in enumerate(tasks)
        ]


def pixels(images: Tensor, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[b, height, width, 3] of LeRobot's [b, 3, height, width] from 0 to 1: the bytes that a camera gave."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ModelError(f"{name} has shape {list(images.shape)}; images are [batch, 3, height, width].")
    whole = images if images.dtype == torch.uint8 else (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(whole.permute(0, 2, 3, 1).cpu().numpy())
