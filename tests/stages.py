"""The stages that write, each from the same small material, by the command line: for tests that make them fail."""

import dataclasses
from pathlib import Path

from athena_vla import embodiment
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.models.lora import LoraSettings
from recordings import clean, write
from small_bundles import write_base, write_finetuned

# Name of a stage -> words of its command; IN is the folder of the material and OUT what the stage writes.
TRAIN = (
    "--max-steps 4 --batch 2 --accumulation 1 --evaluate-every 2 --checkpoint-every 2 --warmup-steps 1 "
    "--rank 4 --seed 1 --precision fp32 --no-tensorboard --workers 0"
)
STAGES: dict[str, str] = {
    "record": "record OUT --episodes 2 --workers 1 --seed 3",
    "convert": "data convert IN/rec OUT --to lerobot_v3",
    "convert_v21": "data convert IN/rec OUT --to lerobot_v21",
    "convert_rlds": "data convert IN/rec OUT --to rlds",
    "convert_folder": "data convert IN/rec OUT --to isaac_folder",
    "select": "data select IN/rec OUT --least-frames 5",
    "join": "data merge IN/rec IN/rec2 OUT",
    "annotate": "data annotate IN/rec --out OUT",
    "view": "data view IN/rec --show pages --checks none --out OUT",
    "build": "data build IN/rec OUT --robot toy --horizon 4 --workers 1",
    "link": "data build IN/rec OUT --robot toy --horizon 4 --workers 1 --link",
    "merge": "merge IN/adapter OUT",
    "quantize": "quantize IN/base OUT --method nearest --no-sensitivity",
    "export": "export IN/base OUT",
    "train": f"train --model IN/base --data IN/set --out OUT {TRAIN}",
}


def make_material(folder: Path) -> None:
    """Recordings of five short episodes in two folders, a set, and bundles of a very small model."""
    write(folder / "rec", *(clean(i, length=20) for i in range(3)))
    write(folder / "rec2", *(clean(i, length=20) for i in range(3, 5)))
    build(BuildConfig(input=folder / "rec", out=folder / "set", robot="toy", horizon=4, workers=1))
    base = write_base(folder / "base", embodiment.load("toy"))
    write_finetuned(folder / "adapter", base, dataclasses.replace(LoraSettings(), rank=4))


def words(stage: str, material: Path, out: Path) -> list[str]:
    return [w.replace("IN", str(material), 1).replace("OUT", str(out), 1) for w in STAGES[stage].split()]
