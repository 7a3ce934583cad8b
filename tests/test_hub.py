"""Bundles to the Hub and back: what travels and what stays here, cut transfers, damage, and who may do what."""

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from athena_vla import bundle as bundles
from athena_vla.bench import BenchConfig, bench
from athena_vla.bundle import Bundle
from athena_vla.errors import AthenaError
from athena_vla.export import ExportConfig, export
from athena_vla.finetune.merge_config import MergeConfig
from athena_vla.hub import PushConfig, push
from athena_vla.hub.local_paths import Cutter, needles, scan
from athena_vla.merge import merge
from athena_vla.models.lora import LoraSettings
from athena_vla.models.released.base_licences import base_licence
from athena_vla.policy import Policy
from hub_commands import BLOCK, Commands
from hub_stand_in import READER, Faults, Hub
from small_bundles import write_base, write_finetuned

MIT = ("--license", "mit")


@pytest.fixture(scope="module")
def material(tmp_path_factory, toy) -> Path:
    """A base, an adapter on it, and the exported policy; beside them what must not travel."""
    folder = tmp_path_factory.mktemp("alice")
    base = write_base(folder / "base", toy)
    write_finetuned(folder / "tuned", base, LoraSettings(rank=4))
    merge(MergeConfig(input=folder / "tuned", out=folder / "merged"))
    export(ExportConfig(input=folder / "merged", out=folder / "exported"))
    (folder / "exported" / "passwords.txt").write_text("of the robot")
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(chunk=200_000) as running:
        yield running


@pytest.fixture
def athena(hub, tmp_path) -> Iterator[Commands]:
    """The commands of somebody else's machine, so that paths of this one can be told from theirs."""
    (tmp_path / "bob").mkdir()
    commands = Commands(tmp_path / "bob", hub)
    yield commands
    commands.require_silence()


def digests(folder: Path) -> dict[str, str]:
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file()
    }


def test_a_bundle_comes_back_as_it_was_without_this_machines_paths(hub, athena, material) -> None:
    athena.apart = True
    athena.does("push", material / "exported", "tester/policy", *MIT, "--message", "first")
    there = hub.files("tester/policy")
    assert "passwords.txt" not in there
    listed = Bundle.open(material / "exported").manifest.files
    assert set(there) == {*listed, "manifest.json", "athena_hub.json", "README.md", ".gitattributes"}
    assert str(material).encode() not in hub.everything()
    said = athena.does("pull", "tester/policy", "policy")
    assert "every hash as listed" in said.out
    assert "Licence: mit" in said.out
    here = athena.home / "policy"
    came, went = digests(here), digests(material / "exported")
    assert set(came) == {*listed, "manifest.json", "athena_hub.json", "README.md"}
    rewritten = {"manifest.json", "deployment_config.json"}
    assert {k: v for k, v in came.items() if k in listed and k not in rewritten} == {
        k: v for k, v in went.items() if k in listed and k not in rewritten
    }
    assert json.loads((here / "deployment_config.json").read_text())["model_path"] == "exported"
    before, after = Bundle.open(material / "exported"), Bundle.open(here)
    assert after.known_as == (after.hash, before.hash)
    assert after.manifest.parent_path == ""
    frame = before.golden.observations[0]
    assert np.array_equal(Policy.of(before, "auto").act(frame).positions, Policy.of(after, "auto").act(frame).positions)
    assert not [p for p in athena.home.iterdir() if p.name.startswith(".policy")]


def test_the_card_says_what_the_manifest_says(material) -> None:
    config = PushConfig(input=material / "exported", repo="me/policy", license="Our Own 1.0", dry_run=True)
    card = push(dataclasses.replace(config, trained_on="me/set", data_license="cc-by-4.0")).card
    _, head, text = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert (fields["license"], fields["license_name"]) == ("other", "Our Own 1.0")
    assert fields["datasets"] == ["me/set"]
    assert {"robotics", "athena-vla"} <= set(fields["tags"])
    manifest = Bundle.open(material / "exported").manifest
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    for gate in manifest.gates.values():
        assert f"{gate.value:.4g}" in rows[gate.label]
        assert gate.bound in rows[gate.label]
        assert "passed" in rows[gate.label]
    for joint, deviation in manifest.deviation["per_joint_max_rad"].items():
        assert f"{deviation:.3g}" in rows[joint]
    assert manifest.parent_hash in text
    assert "cc-by-4.0" in text
    unknown = push(dataclasses.replace(config, license="unknown")).card
    assert "license" not in yaml.safe_load(unknown.split("---\n")[1])
    assert "Policy: not known" in unknown


def test_measurements_stand_on_the_card_of_their_own_bundle(tmp_path, material) -> None:
    path = material / "exported"
    bench(BenchConfig(bundle=path, warmup=10, runs=100, out=tmp_path / "bench.json"))
    record = json.loads((tmp_path / "bench.json").read_text())
    share = {"success": 0.75, "n": 40, "low": 0.598, "high": 0.858}
    rows = [
        {"name": "int4 [x](y)", "kind": "policy", "source": str(path), "ablation": "none"},
        {"name": "int4.black_image", "kind": "policy", "source": str(path), "ablation": "black_image"},
        {"name": "mean", "kind": "mean_chunk", "source": "", "ablation": "none"},
    ]
    closed = {r["name"]: {"success": share, "violations": 0} for r in rows}
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": rows, "closed_loop": closed}))
    config = PushConfig(input=path, repo="me/x", license="mit", dry_run=True)
    card = push(dataclasses.replace(config, bench=tmp_path / "bench.json", compare=tmp_path)).card
    assert f"| one action, frame to first command [ms] | {record['summary']['action_ms']:.4g} |" in card
    assert "Measured on a computer: " in card
    assert "| **int4 \\[x\\]\\(y\\)** (this one) | 75% | 60% to 86% | 40 | 0 |" in card
    assert "| mean | 75% |" in card
    assert "black" not in card.partition("## Success")[2]
    other = dataclasses.replace(config, input=material / "base")
    for wrong in ({"bench": tmp_path / "bench.json"}, {"compare": tmp_path}):
        with pytest.raises(AthenaError, match="base"):
            push(dataclasses.replace(other, **wrong))
    with pytest.raises(AthenaError, match="no result of athena bench"):
        push(dataclasses.replace(config, bench=tmp_path / "comparison.json"))
    with pytest.raises(AthenaError, match="no comparison"):
        push(dataclasses.replace(config, compare=tmp_path / "bench.json"))


def test_the_licence_of_a_known_base_is_found_through_the_line(tmp_path, toy, material) -> None:
    base = Bundle.open("builtin:base")
    made = dataclasses.replace(base.manifest, stage="merged", parent_hash=base.hash, parent_path="builtin:base")
    for name, manifest in (("first", made), ("second", dataclasses.replace(made, parent_path=str(tmp_path / "first")))):
        if name == "second":
            manifest = dataclasses.replace(manifest, parent_hash=Bundle.open(tmp_path / "first").hash)
        shutil.copytree(base.path, tmp_path / name)
        (tmp_path / name / "manifest.json").unlink()
        bundles.seal(tmp_path / name, manifest)
    config = PushConfig(input=tmp_path / "second", repo="me/x", dry_run=True)
    card = push(config).card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert "- Base: builtin:base" in card
    bundles.mark(Bundle.open(tmp_path / "first"), {})
    changed = dataclasses.replace(Bundle.open(tmp_path / "first").manifest, dataset_hash="another")
    bundles.seal(tmp_path / "first", changed)  # no longer what the second was made from
    with pytest.raises(AthenaError, match="--license"):
        push(config)
    assert base_licence("openvla/openvla-7b@abc") == base_licence("OpenVLA/openvla-7b")
    assert base_licence("somebody/else") is None


def test_what_a_name_holds_is_text_on_the_card(tmp_path, toy) -> None:
    evil = "[click](https://evil.example) <script>alert(1)</script>\n# heading\nlicense: mit"
    robot = dataclasses.replace(toy, name=evil.replace("\n", " "))
    write_base(tmp_path / "base", robot)
    card = push(PushConfig(input=tmp_path / "base", repo="me/x", license=f'a"\n{evil}', dry_run=True)).card
    _, head, text = card.split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "tags", "license", "license_name"}
    assert "](http" not in text
    assert "<script>" not in text
    assert not [line for line in text.splitlines() if line.startswith("# heading")]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cuts_at_random_bytes_cost_a_block_each(hub, athena, material, seed) -> None:
    athena.apart = seed == 0
    hub.faults = Faults(seed, uploads=4)
    athena.does("push", material / "merged", "tester/policy", *MIT)
    assert hub.faults.uploads == 0
    size = sum(len(b) for b in hub.store.values())
    assert size <= hub.received <= size + 4 * hub.chunk
    hub.faults, hub.cuts = Faults(seed, downloads=16), 0
    athena.does("pull", "tester/policy", "policy")
    assert hub.cuts >= 4
    whole = sum(len(b) for n, b in hub.files("tester/policy").items() if n != ".gitattributes")
    assert whole <= hub.sent <= whole + hub.cuts * BLOCK
    assert any(a.start for a in hub.asked)  # it went on in the middle
    came = digests(athena.home / "policy")
    want = {n: hashlib.sha256(b).hexdigest() for n, b in hub.files("tester/policy").items() if n != ".gitattributes"}
    assert came == want


def test_a_pull_that_ended_goes_on_from_what_came(hub, athena, material) -> None:
    athena.does("push", material / "merged", "tester/policy", *MIT)
    hub.faults = Faults(after_bytes=1_500_000)
    said = athena.run("pull", "tester/policy", "policy").sentence
    assert "the same command goes on from it" in said
    assert not (athena.home / "policy").exists()
    hub.faults = Faults()
    sent, hub.asked[:] = hub.sent, []
    athena.does("pull", "tester/policy", "policy")
    whole = sum(len(b) for b in hub.files("tester/policy").values())
    assert sent >= 1_400_000
    assert hub.sent <= whole + BLOCK + 20_000  # the listing, the card and the manifest are asked for again
    assert max(a.start for a in hub.asked) > 1_000_000
    Bundle.open(athena.home / "policy")


def test_a_pull_that_was_killed_goes_on_from_what_came(hub, athena, material) -> None:
    athena.does("push", material / "merged", "tester/policy", *MIT)
    hub.faults = Faults(after_bytes=1_500_000, hang=True)
    athena.apart, athena.kill_when = True, hub.hung
    assert athena.run("pull", "tester/policy", "policy").status == -signal.SIGKILL
    assert not (athena.home / "policy").exists()
    hub.faults, athena.apart, athena.kill_when = Faults(), False, None
    hub.asked.clear()
    athena.does("pull", "tester/policy", "policy")
    assert max(a.start for a in hub.asked) > 1_000_000
    Bundle.open(athena.home / "policy")
    assert not [p for p in athena.home.iterdir() if p.name.startswith(".policy.partial")]


def test_a_push_that_was_cut_sends_what_is_missing(hub, athena, material) -> None:
    hub.faults = Faults(uploads=10_000)
    said = athena.run("push", material / "merged", "tester/policy", *MIT).sentence
    assert "connection broke" in said
    assert set(hub.files("tester/policy")) == {".gitattributes"}  # all of it or nothing
    hub.faults = Faults()
    athena.does("push", material / "merged", "tester/policy", *MIT)
    hub.asked.clear()
    athena.does("push", material / "merged", "tester/policy", *MIT)  # nothing to do
    assert not [a for a in hub.asked if a.method == "PUT" or "/commit/" in a.path]


def test_damage_on_the_way_leaves_nothing(hub, athena, material) -> None:
    athena.does("push", material / "merged", "tester/policy", *MIT)
    weights = "weights/model.safetensors"
    hub.faults.damage[weights] = lambda b: b[:-1] + bytes([b[-1] ^ 1])
    assert "its hash differs" in athena.run("pull", "tester/policy", "policy").sentence
    hub.faults.damage[weights] = lambda b: b + b"more"
    assert "more than was listed" in athena.run("pull", "tester/policy", "policy").sentence
    assert not (athena.home / "policy").exists()
    hub.faults.damage.clear()
    athena.does("pull", "tester/policy", "policy")


@pytest.mark.parametrize(
    "path", ["../../stolen", "/etc/stolen", "a/../../stolen", "C:\\stolen", ".ssh/keys", "README.md"]
)
def test_a_listing_cannot_lead_out_of_the_folder(hub, athena, material, path) -> None:
    athena.does("push", material / "base", "tester/policy", *MIT)
    files = dict(hub.files("tester/policy"))
    listing = json.loads(files["athena_hub.json"])
    listing["kind"] = "adapter"
    listing["files"][path] = {"sha256": hashlib.sha256(b"evil").hexdigest(), "bytes": 4}
    repo = hub.repos["model", "tester/policy"]
    repo.commit("main", {**files, path: b"evil", "athena_hub.json": json.dumps(listing).encode()})
    assert "no path inside its folder" in athena.run("pull", "tester/policy", "policy").sentence
    assert not list(athena.home.parent.rglob("stolen"))


def test_a_listing_and_a_manifest_must_agree(hub, athena, material) -> None:
    athena.does("push", material / "base", "tester/policy", *MIT)
    files = dict(hub.files("tester/policy"))
    listing = json.loads(files["athena_hub.json"])
    listing["files"]["weights/more.safetensors"] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    repo = hub.repos["model", "tester/policy"]
    added = {"weights/more.safetensors": b"x", "athena_hub.json": json.dumps(listing).encode()}
    repo.commit("main", {**files, **added})
    assert "list other files" in athena.run("pull", "tester/policy", "policy").sentence
    del files["athena_hub.json"]
    repo.commit("main", {**files, "weights/unlisted.bin": b"y"})  # a bundle that was uploaded by other means
    athena.does("pull", "tester/policy", "policy")
    assert not (athena.home / "policy" / "weights" / "unlisted.bin").exists()


def test_an_adapter_bundle_finds_its_base_again(hub, athena, material, tmp_path) -> None:
    # The base was itself made from another bundle, so its manifest changes when its paths go.
    again = write_finetuned(tmp_path / "again", Bundle.open(material / "merged"), LoraSettings(rank=2), seed=5)
    merge(MergeConfig(input=again.path, out=tmp_path / "again-merged"))
    athena.does("push", material / "merged", "tester/base", *MIT)
    athena.does("push", again.path, "tester/tuned", *MIT)
    said = athena.does("pull", "tester/tuned", "unbound")
    assert "--base" in said.out
    assert "does not know where its base lies" in athena.run("merge", "unbound", "x").sentence
    athena.does("pull", "tester/base", "base")
    athena.does("pull", "tester/tuned", "tuned", "--base", "base")
    athena.does("merge", "tuned", "merged")
    assert Bundle.open(athena.home / "base").hash != Bundle.open(material / "merged").hash
    ours, theirs = (f / bundles.MODEL_FILE for f in (tmp_path / "again-merged", athena.home / "merged"))
    assert ours.read_bytes() == theirs.read_bytes()
    athena.does("pull", "tester/tuned", "tuned", "--base", "base", "--overwrite")
    assert "was made from" in athena.run("pull", "tester/tuned", "other", "--base", material / "base").sentence
    assert not (athena.home / "other").exists()


def test_an_existing_out_is_kept(hub, athena, material) -> None:
    athena.does("push", material / "base", "tester/policy", *MIT)
    (athena.home / "mine").mkdir()
    (athena.home / "mine" / "thesis.txt").write_text("years")
    assert "is not a bundle" in athena.run("pull", "tester/policy", "mine", "--overwrite").sentence
    athena.does("pull", "tester/policy", "policy")
    assert "--overwrite" in athena.run("pull", "tester/policy", "policy").sentence
    athena.does("pull", "tester/policy", "policy", "--overwrite")
    assert "more than --most" in athena.run("pull", "tester/policy", "big", "--most", "0.0001").sentence


def test_who_may_do_what(hub, athena, material) -> None:
    base = material / "base"
    assert "Nobody is logged in" in athena.run("push", base, "tester/x", *MIT, HF_TOKEN="").sentence
    assert "not your token" in athena.run("push", base, "tester/x", *MIT, HF_TOKEN="hf_wrong").sentence
    assert "does not let you" in athena.run("push", base, "tester/x", *MIT, HF_TOKEN=READER).sentence
    assert "does not let you" in athena.run("push", base, "somebody/x", *MIT).sentence
    athena.does("push", base, "tester/hidden", *MIT, "--private")
    assert hub.repos["model", "tester/hidden"].private
    for token in ("", READER):
        assert "or you may not see it" in athena.run("pull", "tester/hidden", "x", HF_TOKEN=token).sentence
    athena.does("pull", "tester/hidden", "mine")
    athena.does("push", base, "tester/seen", *MIT)
    athena.does("pull", "tester/seen", "public", HF_TOKEN="")
    assert "everybody can see it" in athena.run("push", base, "tester/seen", *MIT, "--private").sentence
    assert "does not let you" in athena.run("push", material / "merged", "tester/seen", *MIT, HF_TOKEN=READER).sentence


def test_wrong_input_gets_a_sentence(hub, athena, material) -> None:
    base = material / "base"
    for name in ("policy", "a/b/c", "tester/..", "tester/x--y", "tester/.git", "te ster/x", "tester/x.git"):
        assert "no name on the Hub" in athena.run("push", base, name, *MIT, "--dry-run").sentence
    assert "--license" in athena.run("push", base, "tester/x", "--dry-run").sentence
    (athena.home / "empty").mkdir()
    assert "is no bundle" in athena.run("push", "empty", "tester/x", *MIT).sentence
    assert "cannot be published as" in athena.run("push", base, "tester/x", *MIT, "--kind", "dataset").sentence
    assert "HF_HUB_OFFLINE" in athena.run("pull", "tester/x", "x", HF_HUB_OFFLINE="1").sentence
    nobody = athena.run("pull", "tester/x", "x", HF_ENDPOINT="http://127.0.0.1:9").sentence
    assert "cannot be reached" in nobody
    assert "has no model or dataset" in athena.run("pull", "tester/x", "x").sentence
    athena.does("push", base, "tester/policy", *MIT)
    assert "--type model" in athena.run("pull", "tester/policy", "x", "--type", "dataset").sentence
    assert "no such revision" in athena.run("pull", "tester/policy", "x", "--revision", "v9").sentence
    hub.repos["model", "tester/policy"].commit("main", {"model.gguf": b"somebody else's"})
    assert "not published from here" in athena.run("push", base, "tester/policy", *MIT).sentence
    assert "was not published by Athena-VLA" in athena.run("pull", "tester/policy", "x").sentence
    assert hub.files("tester/policy") == {"model.gguf": b"somebody else's"}


def test_a_branch_is_made_and_old_files_go(hub, athena, material) -> None:
    athena.does("push", material / "base", "tester/policy", *MIT)
    athena.does("push", material / "exported", "tester/policy", *MIT, "--revision", "small")
    assert "weights/model.safetensors" in hub.files("tester/policy")
    there = hub.files("tester/policy", revision="small")
    assert "weights/model.safetensors" not in there
    assert "weights/model.data" in there
    athena.does("pull", "tester/policy", "small", "--revision", "small")
    assert Bundle.open(athena.home / "small").manifest.stage == "exported"


def test_a_dry_run_asks_nobody(hub, athena, material) -> None:
    said = athena.does("push", material / "exported", "tester/policy", *MIT, "--dry-run", HF_TOKEN="")
    assert not hub.asked
    assert "Nothing was sent" in said.out
    assert "weights/model.data" in said.out


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
from athena_vla.errors import MissingDependency
from athena_vla.hub import PushConfig, pulling, push
folder = Path(sys.argv[1])
told = {"repo": "me/x", "license": "mit", "dry_run": True}
push(PushConfig(input=folder / "exported", **told))
for changed in ({"kind": "adapter"}, {"dry_run": False}):
    sys.modules["huggingface_hub"] = None
    try:
        push(PushConfig(input=folder / "tuned", **{**told, **changed}))
    except MissingDependency as error:
        print(error)
"""


def test_a_bundle_is_published_without_torch_and_what_is_missing_is_named(material) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(material)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    adapter, client = done.stdout.splitlines()
    assert "'safetensors' is not installed" in adapter
    assert "'huggingface_hub' is not installed" in client
    assert "[hub]" in client


def test_paths_in_binary_files_are_refused(tmp_path, toy, monkeypatch) -> None:
    base = write_base(tmp_path / "alice" / "base", toy)
    (base.path / "weights" / "graph.onnx").write_bytes(b"\x08" * 99 + f"{tmp_path}/alice/secret.py".encode() + b"\0")
    (base.path / "manifest.json").rename(tmp_path / "old")
    bundles.seal(base.path, base.manifest)
    config = PushConfig(input=base.path, repo="me/x", license="mit", dry_run=True)
    with pytest.raises(AthenaError, match="graph.onnx.*a path of this machine.*--allow-paths"):
        push(config)
    push(dataclasses.replace(config, allow_paths=True))


def test_what_is_a_path_of_this_machine(tmp_path) -> None:
    cutter = Cutter()
    cases = {
        "/mnt/alice/my sets/pour": "pour",
        "from /mnt/alice/rec.hdf5, twice": "from rec.hdf5, twice",
        "~/runs/a": "a",
        "../alice/set": "set",
        "C:\\Users\\alice\\set": "set",
        "see D:/data/alice/set now": "see set now",
        "file:///mnt/alice/x": "x",
        "isaac_folder:/mnt/alice/rec/episode_1": "isaac_folder:episode_1",
        str(tmp_path / "deep"): "deep",
        # What stays: topics, units, addresses, names on the Hub, relative names, texts.
        "/robot_7/joint_states": "/robot_7/joint_states",
        "rad/s": "rad/s",
        "https://huggingface.co/a/b": "https://huggingface.co/a/b",
        "openvla/openvla-7b@abc": "openvla/openvla-7b@abc",
        "builtin:base": "builtin:base",
        "runs/demo/set": "runs/demo/set",
        "weights/head.onnx": "weights/head.onnx",
        "and/or": "and/or",
        "/": "/",
        "": "",
    }
    assert {text: cutter.text(text) for text in cases} == cases
    assert cutter.value({"/mnt/a/b": [1, {"x": "/mnt/a/c"}]}) == {"b": [1, {"x": "c"}]}
    places = needles(tmp_path / "set", {"/mnt/alice/rec"})
    assert f"{tmp_path}/".encode() in places
    assert not any(
        n.count(b"/") < 3 for n in needles(Path("/data/set"), set()) if not n.startswith(str(Path.home()).encode())
    )
    assert b"/mnt/alice/rec/" in places
    big = tmp_path / "big"
    for start in (0, 5, (1 << 20) - 3, (1 << 20) - len(places[0]), 3 << 20):  # also across blocks that are read
        big.write_bytes(b"\1" * start + places[0] + b"\1" * 7)
        found = scan(big, places)
        assert found.holds == places[0].decode()
        assert found.sha256 == hashlib.sha256(big.read_bytes()).hexdigest()
    big.write_bytes(b"\1" * (3 << 20))
    assert scan(big, places).holds == ""
