"""What LeRobot is told of the policy: which bundle, and how many rows of a chunk are played."""

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("athena")
@dataclass
class AthenaConfig(PreTrainedConfig):
    """Features are those of the bundle's robot; nothing is normalised here."""

    bundle: str = ""
    """Folder of the bundle, or builtin:NAME."""
    bundle_hash: str = ""
    """Hash of that bundle; another one at the same place is refused. Empty: not looked at."""
    backend: str = "auto"
    """What runs the bundle: torch, onnxruntime, openvino, tensorrt, llama.cpp, or what it needs."""
    on: str = "auto"
    """Where it runs: auto, cpu, cuda or cuda:N. `device` is where LeRobot's own tensors lie."""
    n_action_steps: int = 0
    """Rows of a chunk that are played before the next question; 0: all."""

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> None:
        raise NotImplementedError("A bundle is not trained by LeRobot: take `athena train`.")

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """The policy looks itself, against the bundle's robot."""
