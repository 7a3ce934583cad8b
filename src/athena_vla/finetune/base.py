"""What a fine-tuning starts from: a float base bound to the dataset's robot; refused where it cannot be trained."""

from dataclasses import dataclass

import torch

import athena_vla.bundle as bundles
from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.mixed import MixedSet, WeightedSet
from athena_vla.errors import InvalidObservation, TrainingError
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.models import lora
from athena_vla.models.architecture import DEFAULT_FAMILY, Architecture
from athena_vla.models.lora import LoraSettings, Trainables
from athena_vla.models.released import pretrained
from athena_vla.models.released.pretrained import Release
from athena_vla.models.robot_sizes import Sizes


@dataclass(frozen=True)
class Start:
    """A model with its adapters attached, and what it was made of."""

    dataset: Dataset
    base: Bundle | Release
    model: Architecture
    settings: LoraSettings
    trainables: Trainables


def start(config: FinetuneConfig, dataset: Dataset, device: str = "cpu") -> Start:
    """Open the base, bind it to the dataset's robot and attach the adapters; the same tensors for the same seed.

    Raises `TrainingError`, `BundleError`, `ModelError`.
    """
    require_usable(dataset, config)
    base = open_base(config)
    torch.manual_seed(config.seed)
    model = bound_model(base, dataset, config, device)
    require_sayable(model, dataset)
    settings = LoraSettings(**config.lora())
    return Start(dataset, base, model, settings, lora.attach(model, settings))


def open_sets(config: FinetuneConfig) -> Dataset:
    """What is trained on: a set, a recording in place, or several sets as one. Raises `DatasetError`."""
    return MixedSet.open_all([WeightedSet.parse(s) for s in config.sets], config.robot)


def open_base(config: FinetuneConfig) -> Bundle | Release:
    """The base: a bundle with float weights or a released checkpoint. Raises `BundleError`, `ModelError`."""
    base = bundles.open_base(config.model)
    if isinstance(base, Bundle) and base.manifest.adapter:
        raise TrainingError(
            f"'{base.path}' is itself an adapter. Merge it first (athena merge), then fine-tune the merged bundle."
        )
    if isinstance(base, Bundle) and base.manifest.stage not in ("base", "merged"):
        raise TrainingError(
            f"'{config.model}' is a bundle of stage '{base.manifest.stage}'; only float weights can be trained. "
            "Use the bundle it was made from."
        )
    return base


def bound_model(base: Bundle | Release, dataset: Dataset, config: FinetuneConfig, device: str = "cpu") -> Architecture:
    """The base's body with heads for the dataset's robot; fresh heads are drawn from torch's generator.

    A released checkpoint says nothing about this robot: statistics are the dataset's, the family is the config's, and
    the loaded body is asked whether it sees and listens before anything trains on it.
    """
    robot = dataset.robot
    sizes = Sizes(
        horizon=dataset.horizon,
        action_dim=robot.action_dim,
        state_dim=robot.state_dim,
        cameras=len(robot.cameras),
        proprio=config.proprio,
        prefix=config.prefix,
        # What is trained on crops sees the middle of an image when it acts: objects are as large as in training.
        crop_area=config.augment_crop if config.augment else None,
    )
    name = config.family or (DEFAULT_FAMILY if isinstance(base, Release) else base.manifest.family)
    if isinstance(base, Release):
        nf4 = config.quantization == "nf4"
        double = config.double_quantization
        return base.model(name, sizes=sizes, device=device, four_bit=nf4, double=double, check=True)
    return pretrained.bind(base.model(), name, sizes)


def require_usable(dataset: Dataset, config: FinetuneConfig) -> None:
    """Raises `TrainingError` for a dataset that this run could not learn or choose from."""
    if not len(dataset.train):
        raise TrainingError(f"The dataset '{dataset.path}' has no training sample; build it from more episodes.")
    if not dataset.cameras:
        raise TrainingError(
            f"The dataset '{dataset.path}' has no images: '{dataset.robot.name}' has no camera, and a policy that sees "
            "needs one. Give the robot a [[camera]] in its TOML, record images, and build again."
        )
    longest = max(int(e["length"]) for e in dataset.episodes)
    if dataset.horizon > longest:
        raise TrainingError(
            f"The dataset's horizon of {dataset.horizon} steps is longer than its longest episode ({longest}): every "
            "chunk would be padding. Build it again with a smaller --horizon."
        )
    if not len(dataset.validation) and (config.patience or config.select != "last"):
        raise TrainingError(
            f"The dataset '{dataset.path}' has no validation episode, so neither the best step nor early stopping can "
            "be decided. Build it with --validation 0.1 and more episodes, or use --select last --patience 0."
        )


def require_sayable(model: Architecture, dataset: Dataset) -> None:
    """Raises `TrainingError` naming the episodes whose instruction this model cannot read."""
    problems: list[str] = []
    for number, episode in enumerate(dataset.episodes):
        for text in dataset.texts(number):
            try:
                model.require_instruction(text)
            except InvalidObservation as error:
                problems.append(f"{episode['id']}: {error}")
                break
    if problems:
        raise TrainingError(
            f"{len(problems)} of {len(dataset.episodes)} episodes have an instruction that the model cannot read. "
            f"{' '.join(problems[:4])} Mend them in the recording (athena data annotate), and build it again."
        )
