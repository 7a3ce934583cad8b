"""The base on a robot it was not trained for, as a bundle: what "the generic model" can mean there. Nothing trains."""

import dataclasses
from pathlib import Path

import torch

from athena_vla.bundle import ADAPTER_FILE, MODEL_FILE, Bundle, Manifest, writing
from athena_vla.dataset.dataset import Dataset
from athena_vla.models import lora
from athena_vla.models.released.pretrained import Release, bind
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.weights.store import save_tensors
from athena_vla.policy import Policy, record_golden


def bind_base(base: Bundle | Release, dataset: Dataset, out: Path, seed: int = 0, family: str = "") -> Path:
    """A bundle of the untrained base on another robot: its statistics, and fresh heads where the sizes differ.

    This is what "the generic model" can mean on a robot it was never made for; the bundle says so wherever it is shown.
    A released checkpoint stays where it is: the bundle points to it and holds the heads only.
    """
    robot = dataset.robot
    sizes = Sizes(
        action_dim=robot.action_dim,
        state_dim=robot.state_dim,
        cameras=len(robot.camera_names),
        horizon=dataset.horizon,
    )
    torch.manual_seed(seed)
    if isinstance(base, Release):
        model = base.model(family, sizes=sizes)
        whose = f"the released checkpoint '{base.source}'"
        checkpoint, parent = base.source, ""
    else:
        # All else is its own: only the robot is another one.
        own = dataclasses.replace(Sizes.of(base.spec), **sizes.of_a_robot() | {"horizon": base.spec.horizon})
        model = bind(base.model(), base.manifest.family, own)
        whose = f"'{base.robot.name}' ({base.robot.action_dim} action dimensions)"
        checkpoint, parent = "", str(base.path)
    text = (
        f"the weights of {whose} with the action statistics of "
        f"dataset {dataset.hash} for the {robot.action_dim} joints of '{robot.name}'; whatever depends "
        "on the number of joints was initialised fresh and never trained. It has no chance, and is shown for that."
    )
    settings = lora.LoraSettings(method="heads") if isinstance(base, Release) else None
    manifest = Manifest(
        stage="base",
        family=model.family,
        spec=model.spec.to_dict(),
        robot=robot.to_dict(),
        normalizer=dataset.normalizer.to_dict(),
        dataset_hash=dataset.hash,
        parent_hash=base.hash,
        checkpoint=checkpoint,
        parent_path=parent,
        adapter={} if settings is None else dataclasses.asdict(settings) | {"targets": list(settings.targets)},
        stage_info={"rebound": text},
    )
    policy = Policy.of_model(model.eval(), robot, dataset.normalizer)
    golden = record_golden(policy, [dataset[int(dataset.train[0])].observation])
    with writing(out, manifest, golden, model.tokenizer_files()) as folder:
        if settings is None:
            save_tensors(model.state_dict(), folder / MODEL_FILE)
        else:
            lora.attach(model, settings)
            save_tensors(lora.state(model), folder / ADAPTER_FILE)
    return out
