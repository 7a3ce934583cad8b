"""A built dataset on its way to the Hub: the files that its own tables name, in LeRobot's layout, and its card."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from athena_vla.dataset.card import dataset_card
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.sidecar import SIDECAR, content_hash
from athena_vla.errors import DatasetError, HubError
from athena_vla.files import read_json_object
from athena_vla.hub.card_parts import code, front_matter, licence_lines
from athena_vla.hub.hub_config import PushConfig
from athena_vla.hub.local_paths import Cutter
from athena_vla.hub.shipment import Item, Licences, Shipment, few, left_out, require_licence

HASHED = ("robot", "normalizer", "hash")  # what the hash of a set covers: never touched
META = ("meta/info.json", "meta/stats.json", "meta/tasks.parquet")


def dataset_shipment(config: PushConfig) -> Shipment:
    """What of a set would be published. Raises `DatasetError` where it is not whole, `HubError`."""
    folder = config.input
    dataset = Dataset.open(folder)
    sidecar = read_json_object(folder / "meta" / SIDECAR, DatasetError)
    if sidecar.get("linked"):
        raise HubError(
            f"The images of '{folder}' lie in the recording it was built from, which stays on this machine. Build it "
            "without --link, and publish that."
        )
    cutter = Cutter()
    cut: dict[str, Any] = {k: v if k in HASHED else cutter.value(v) for k, v in sidecar.items()}
    if content_hash(cut) != dataset.hash:
        raise HubError(f"'{folder}' would not be the same set without this machine's paths in its meta/{SIDECAR}.")
    text = json.dumps(cut, indent=1).encode() if cutter.found else folder / "meta" / SIDECAR
    names = sorted({*META, *_tables(folder), *_named_files(folder)})
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise DatasetError(f"'{folder}' lacks {few(missing)}: it was cut or copied in part. Build it again.")
    links = [n for n in names if not (folder / n).resolve().is_relative_to(folder.resolve())]
    if links:
        raise DatasetError(f"'{folder}': {few(links)} lead to another folder. Copy the files.")
    items = (Item(f"meta/{SIDECAR}", text), *(Item(n, folder / n) for n in names))
    said = "; ".join(map(str, sidecar.get("licences") or ()))
    licences = Licences(require_licence(config.license or config.data_license, "", f"'{folder}'"), data=said)
    notes = list(left_out(folder, items))
    if cutter.found:
        notes.append(f"Paths of this machine were cut to their last names: {few(sorted(cutter.found))}.")
    return Shipment(
        kind="dataset",
        repo_type="dataset",
        hash=dataset.hash,
        items=items,
        card=_card(cut, dataset, config, licences),
        licences=licences,
        cutter=cutter,
        notes=tuple(notes),
    )


def _tables(folder: Path) -> Iterator[str]:
    """The tables of episodes."""
    yield from (f.relative_to(folder).as_posix() for f in (folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))


def _named_files(folder: Path) -> Iterator[str]:
    """Data and videos that the tables of episodes name, by the paths of info.json."""
    info = read_json_object(folder / "meta" / "info.json", DatasetError)
    for name in _tables(folder):
        table = pq.read_table(folder / name)
        columns = set(table.column_names)
        keys = {c.split("/")[1] for c in columns if c.startswith("videos/")}
        patterns = {"data": (str(info["data_path"]), "")}
        patterns |= {f"videos/{key}": (str(info["video_path"]), key) for key in sorted(keys)}
        for prefix, (pattern, key) in patterns.items():
            chunks, files = (table[f"{prefix}/{c}_index"].to_pylist() for c in ("chunk", "file"))
            for chunk, file in sorted(set(zip(chunks, files, strict=True))):
                yield pattern.format(chunk_index=chunk, file_index=file, video_key=key)


def _card(sidecar: dict[str, Any], dataset: Dataset, config: PushConfig, licences: Licences) -> str:
    """The card of the set itself under front matter with the licence, and how to open it."""
    head = front_matter(
        {"tags": ["LeRobot", "robotics", "athena-vla"], "task_categories": ["robotics"]},
        licences,
    )
    configs = ["configs:", "- config_name: default", "  data_files: data/*/*.parquet"]
    body = dataset_card(sidecar, dataset.robot).split("---\n", 2)[2]
    return "\n".join(
        [
            *head[:-2],
            *configs,
            *head[-2:],
            body.strip(),
            "",
            *licence_lines(licences, "Data"),
            "## Open it",
            "",
            "```python",
            "import datasets",
            "",
            f'rows = datasets.load_dataset("{config.repo}", split="train")',
            "```",
            "",
            "The layout is LeRobot v3.0. With Athena-VLA, every hash compared:",
            "",
            *code(f"athena pull {config.repo} set --type dataset"),
        ]
    )
