"""Mistakes that people make on their first day: each gets a status, a sentence that names it, and no traceback.

One row is one command line. `{x}` are places in a small world of recordings, sets and bundles.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from athena_vla import embodiment
from athena_vla.cli import main
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.models.lora import LoraSettings
from recordings import clean, write
from small_bundles import write_base, write_finetuned

MISTAKES: list[tuple[str, int, str]] = [
    # Words of the command
    ("trian --data {set}", 2, "There is no command 'trian'. Did you mean 'train'?"),
    ("frobnicate", 2, "There is no command 'frobnicate'. Known: demo, doctor"),
    ("data inf {rec}", 2, "There is no command 'data inf'. Did you mean 'data info'?"),
    ("data", 0, "athena data build"),
    ("train --preset demo --data {set} --out {x} --ranks 4", 2, "Unrecognized options: --ranks, 4"),
    ("doctor --verbose", 2, "Unrecognized options: --verbose"),
    ("train --preset humanoid --data {set}", 2, "There is no preset 'humanoid'. Did you mean 'humanoid_default'?"),
    ("train --preset demo --data {set} --rank four", 2, "--rank"),
    ("train --preset demo --data {set} --rank 0", 2, "--rank must be at least 1, it is 0"),
    ("train --preset demo --data {set} --precision fp8", 2, "invalid choice 'fp8'"),
    ("train --preset demo --data {set} --device gpu", 2, "invalid choice 'gpu'"),
    ("train --preset demo --data {set} --out {x} --device cuda", 2, "torch sees no GPU"),
    ("quantize {base} {x} --bits 3", 2, "invalid choice '3'"),
    ("completion powershell", 2, "invalid choice 'powershell'"),
    ("plan --gpu rtx4091", 2, "There is no GPU 'rtx4091'. Did you mean 'rtx4090'?"),
    ("export {base} {x} --target jetson-orin", 2, "Did you mean 'jetson-orin-nx-16gb'?"),
    # Paths
    ("data info", 2, "INPUT"),
    ("data info {nowhere}", 2, "There is nothing at '{nowhere}' (INPUT of athena data info)"),
    ("data info {empty}", 2, "'{empty}' is an empty folder. It should hold recordings"),
    ("data info {text}", 2, "'{text}' is none of the formats lerobot"),
    ("train --data {set}t --out {x}", 2, "There is nothing at '{set}t' (--data). Did you mean '{set}'?"),
    ("train --preset demo --out {x}", 2, "There is no dataset at 'dataset'. Name one with --data"),
    ("evaluate {nowhere}", 2, "There is nothing at '{nowhere}' (BUNDLE of athena evaluate)"),
    ("serve {nowhere}", 2, "There is nothing at '{nowhere}' (BUNDLE of athena serve)"),
    ("report {empty}", 2, "holds no finished comparison"),
    ("incident {empty}", 2, "is no black box"),
    ("trials run {empty}", 2, "draw their order first: athena trials draw"),
    ("merge {tuned}", 2, "OUT"),
    # One thing for another
    ("train --preset demo --data {rec} --out {x}", 2, "'{rec}' is not a built dataset"),
    ("evaluate {rec}", 2, "'{rec}' is not a bundle: it has no manifest.json"),
    ("serve {rec}", 2, "'{rec}' is not a bundle"),
    ("evaluate {base} --data {rec}", 2, "'{rec}' is not a built dataset"),
    ("merge {base} {x}", 2, "there is no adapter to merge"),
    ("quantize {tuned} {x}", 2, "run `athena merge` on it first"),
    ("bench {tuned} --backend onnxruntime", 2, "is not exported; run `athena export` on it"),
    ("evaluate {base} --episodes 3", 2, "There is nothing to evaluate on: robot 'toy' has no simulator here"),
    ("compare {base}", 2, "Two policies are needed: athena compare A B"),
    ("train --preset demo --data {set} --out {x} --model openvla/openvla-7b", 2, "the Hub cannot be reached"),
    # Robots
    ("data build {rec} {x}", 2, "Robot name or TOML file"),
    ("data build {rec} {x} --robot atena", 2, "There is no robot 'atena'. Did you mean 'athena'?"),
    ("data build {rec} {x} --robot {nowhere}.toml", 2, "there is no file '{nowhere}.toml'"),
    ("data build {rec} {x} --robot {bad}.toml", 2, "the file is not valid TOML"),
    ("data build {rec} {x} --robot athena", 2, "Say which is which with --joint-map FILE"),
    ("record {x} --robot toy", 2, "has no MJCF model and cannot be simulated"),
    ("drive --robot simm", 2, "There is no robot adapter 'simm'. Did you mean 'sim'?"),
    ("drive --robot sim --option seed=first", 2, "The adapter 'sim' does not take --option seed=first"),
    ("drive --speed 3", 2, "--speed is a share of the limits from 0.1 to 1"),
    # What is there already, and what must not be
    (
        "data build {rec} {set} --robot toy",
        2,
        "'{set}' exists already. Choose another name, or replace it with --overwrite",
    ),
    ("train --preset demo --data {set} --out {set}", 2, "'{set}' exists and is not a bundle: choose another name"),
    ("export {base} {tuned}", 2, "'{tuned}' exists already"),
    ("serve {base} --port 70000", 2, "Port 70000 does not exist"),
    ("serve {base} --host 0.0.0.0", 2, "lets others move the robot: put a token"),
    ("record {x} --episodes 0", 2, "Cannot record 0 episodes"),
    ("data build {rec} {file}/x --robot toy", 2, "{file}"),
    ("data convert {rec} {x} --format lerobto", 2, "There is no recording format 'lerobto'. Did you mean 'lerobot'?"),
    ("compare --results {text} {text}2", 2, "is cut, or is no JSON"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A world with a space in its path."""
    root = tmp_path_factory.mktemp("the first day")
    toy = embodiment.load("toy")
    write(root / "my recordings", *(clean(i, length=14) for i in range(4)))
    build(BuildConfig(input=root / "my recordings", out=root / "set", robot="toy", horizon=4))
    base = write_base(root / "base", toy)
    write_finetuned(root / "tuned", base, LoraSettings(rank=4))
    (root / "empty").mkdir()
    for name, text in (("text", "hello"), ("text2", "hello"), ("file", "mine"), ("bad.toml", "name = ")):
        (root / name).write_text(text)
    names = ("set", "base", "tuned", "empty", "text", "file", "bad", "nowhere", "x")
    return {n: str(root / n) for n in names} | {"rec": str(root / "my recordings")}


def words_of(line: str, places: dict[str, str]) -> list[str]:
    return [re.sub(r"\{(\w+)\}", lambda m: places[m[1]], word) for word in line.split()]


def flat(text: str) -> str:
    """On one line, without the frames of help."""
    return " ".join(re.sub(r"[\u2500-\u257f]+", " ", text).split())


@pytest.mark.parametrize(("line", "status", "sentence"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_natural_mistake_gets_a_sentence(
    line: str, status: int, sentence: str, places: dict[str, str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(places["empty"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(words_of(line, places))
    told = capsys.readouterr()
    assert stop.value.code == status
    said = flat(told.out + told.err)
    expected = flat(re.sub(r"\{(\w+)\}", lambda m: places[m[1]], sentence))
    assert expected in said
    assert "Traceback" not in said
    assert not re.search(r"\b(NoneType|KeyError|AttributeError|argparse|lambda|self\.)\b", said)
    assert not Path(places["x"]).exists(), "nothing is half written"
    assert Path(places["file"]).read_text() == "mine"


def test_the_table_has_what_people_meet() -> None:
    assert len(MISTAKES) >= 45


SLIPS = (
    "train --ranks 4",
    "train --preset humanoid",
    "train --rank 0",
    "evaluate . --epsodes 3",
    "compare .",
    "sweep --foo",
    "checkpoint .",
    "quantize . x --bits 3",
    "merge .",
    "bench . --runs x",
    "export . x --targt y",
    "serve . --prot 1",
    "gates . --p96-rad 1",
)


@pytest.mark.parametrize("line", SLIPS)
def test_an_argument_is_judged_before_torch_is_imported(line: str, tmp_path: Path) -> None:
    code = f"import sys; from athena_vla.cli import main\ntry:\n    main({line.split()!r})\nfinally:\n"
    code += "    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip().endswith("False"), "torch was imported to say: " + done.stderr
