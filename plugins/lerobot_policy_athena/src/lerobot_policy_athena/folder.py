"""The folder by which LeRobot opens a bundle: its config and processors, and no weights."""

from pathlib import Path

from lerobot.configs.types import FeatureType, PolicyFeature

from athena_vla.bundle import Bundle
from athena_vla.embodiment import Embodiment
from athena_vla.errors import BundleError
from lerobot_policy_athena.configuration_athena import AthenaConfig
from lerobot_policy_athena.processor_athena import make_athena_pre_post_processors

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"


def features(robot: Embodiment) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """Inputs and outputs of the robot's policy by LeRobot's names."""
    inputs = {
        IMAGES + c.name: PolicyFeature(type=FeatureType.VISUAL, shape=(3, c.height, c.width)) for c in robot.cameras
    }
    inputs[STATE] = PolicyFeature(type=FeatureType.STATE, shape=(robot.state_dim,))
    return inputs, {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(robot.action_dim,))}


def write_folder(bundle: Path, folder: Path, n_action_steps: int = 0, backend: str = "auto", on: str = "auto") -> Path:
    """Write config.json and the processors. Raises `BundleError`."""
    opened = Bundle.open(bundle)
    if opened.manifest.stage == "finetuned":
        raise BundleError(f"'{bundle}' is an adapter; run `athena merge` on it first.")
    if folder.exists() and any(folder.iterdir()):
        raise BundleError(f"'{folder}' exists already and is not empty; name another folder.")
    inputs, outputs = features(opened.robot)
    place = str(bundle) if str(bundle).startswith("builtin:") else str(opened.path.resolve())
    config = AthenaConfig(
        bundle=place,
        bundle_hash=opened.hash,
        backend=backend,
        on=on,
        n_action_steps=n_action_steps,
        input_features=inputs,
        output_features=outputs,
        device="cpu",
        push_to_hub=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    for processor in make_athena_pre_post_processors(config):
        processor.save_pretrained(folder)
    return folder
