"""What is published is read by others: adapters by plain peft, sets by `datasets`; and a set comes back the same."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from athena_vla.bundle import Bundle
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import AthenaError
from athena_vla.finetune import finetune
from athena_vla.hub import PushConfig, push
from athena_vla.models.body.llama import attention_mask
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.lora import LoraSettings
from athena_vla.models.vla import VisionLanguageModel
from hub_commands import Commands
from hub_stand_in import Hub
from recordings import clean, write
from small_bundles import small_run, write_base, write_finetuned

MIT = ("--license", "mit")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(chunk=200_000) as running:
        yield running


@pytest.fixture
def athena(hub, tmp_path) -> Iterator[Commands]:
    (tmp_path / "bob").mkdir()
    commands = Commands(tmp_path / "bob", hub)
    yield commands
    commands.require_silence()


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    folder = write(tmp_path_factory.mktemp("alice") / "rec", *(clean(i, length=20) for i in range(4)))
    (folder / "LICENSE").write_text("Creative Commons Attribution 4.0\n")
    return folder


@pytest.fixture(scope="module")
def built(recording) -> Path:
    out = recording.parent / "set"
    build(BuildConfig(input=recording, out=out, robot="toy", horizon=4, workers=1))
    return out


class Released(torch.nn.Module):
    """The language part of a released checkpoint as transformers has it, under the released names."""

    def __init__(self, base: VisionLanguageModel) -> None:
        super().__init__()
        import transformers

        assert isinstance(base.spec, VlaSpec)
        spec = base.spec.body.text
        self.config = transformers.LlamaConfig(
            vocab_size=spec.rows,
            hidden_size=spec.width,
            intermediate_size=spec.mlp_width,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads,
            rms_norm_eps=spec.rms_epsilon,
        )
        self.language_model = transformers.LlamaForCausalLM(self.config).eval()
        self.language_model.load_state_dict(base.body.language_model.state_dict())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.language_model(input_ids=ids).logits


@torch.no_grad()
def ours(model: VisionLanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of our decoder on words alone."""
    decoder, valid = model.body.language_model, torch.ones_like(ids, dtype=torch.bool)
    positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
    return decoder.lm_head(decoder(decoder.embed(ids), attention_mask(valid), positions))


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(rank=4),
        LoraSettings(rank=3, alpha=5.0, dora=True),
        LoraSettings(rank=4, targets=("all-linear", "embed_tokens", "lm_head")),
        LoraSettings(rank=4, targets=("q_proj", "down_proj")),
    ],
    ids=["lora", "dora", "tables", "two-targets"],
)
def test_plain_peft_reads_the_adapter_on_a_transformers_model(hub, athena, tmp_path, toy, settings) -> None:
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = write_base(tmp_path / "base", toy, tokens=True)
    tuned = write_finetuned(tmp_path / "tuned", base, settings)
    athena.does("push", tuned.path, "tester/adapter", *MIT, "--kind", "adapter")
    athena.does("pull", "tester/adapter", "adapter")
    folder = athena.home / "adapter"
    plain, adapted = base.model(), tuned.model().eval()
    assert isinstance(plain, VisionLanguageModel)
    assert isinstance(adapted, VisionLanguageModel)
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    theirs = peft.PeftModel.from_pretrained(Released(plain), str(folder)).eval()
    wrapped = {n for n, m in theirs.named_modules() if hasattr(m, "lora_A") and len(m._modules.get("lora_dropout", ()))}
    assert len(wrapped) == len(json.loads((folder / "adapter_config.json").read_text())["target_modules"])
    with torch.no_grad():
        logits = theirs(ids)
    torch.testing.assert_close(logits, ours(adapted, ids), atol=5e-5, rtol=0)
    assert float((logits - ours(plain, ids)).abs().max()) > 1e-2  # the adapter does something


def test_the_adapter_of_a_run_and_its_card(hub, athena, built, tmp_path, toy) -> None:
    base = write_base(tmp_path / "base", toy)
    run = small_run(model=str(base.path), data=str(built), out=tmp_path / "tuned", max_steps=4)
    finetune(dataclasses.replace(run, evaluate_every=2, checkpoint_every=2, warmup_steps=1, workers=0))
    said = athena.does("push", tmp_path / "tuned.run", "tester/adapter", *MIT, "--step", "4")
    assert "published the adapter" in said.out
    from safetensors.torch import load

    there = hub.files("tester/adapter")
    stored = load(there["adapter_model.safetensors"])
    heads = load(there["heads.safetensors"])
    bundle = Bundle.open(tmp_path / "tuned")
    assert bundle.manifest.stage_info["chosen_step"] in (2, 4)
    assert all(n.startswith("base_model.model.language_model.") for n in stored)
    assert not any("lora_" in n for n in heads)
    assert str(tmp_path).encode() not in hub.everything()
    fields = yaml.safe_load(there["README.md"].decode().split("---\n")[1])
    assert fields["library_name"] == "peft"
    assert "mae rad" in there["README.md"].decode()
    assert (
        "There is no checkpoint" in athena.run("push", tmp_path / "tuned.run", "tester/a", *MIT, "--step", "3").sentence
    )
    assert "holds a" in athena.run("push", tmp_path / "tuned", "tester/adapter", *MIT).sentence


def test_what_has_no_adapter_is_refused(tmp_path, toy) -> None:
    base = write_base(tmp_path / "base", toy)
    heads = write_finetuned(tmp_path / "heads", base, LoraSettings(method="heads"))
    for path, said in ((base.path, "has no adapter of its own"), (heads.path, "no LoRA adapter")):
        with pytest.raises(AthenaError, match=said):
            push(PushConfig(input=path, repo="me/x", kind="adapter", license="mit", dry_run=True))


def test_a_set_comes_back_and_datasets_opens_it(hub, athena, built, recording, tmp_path) -> None:
    (built / "notes.txt").write_text("of the lab")
    said = athena.does("push", built, "tester/set", "--license", "cc-by-4.0")
    assert "notes.txt" in said.out
    assert "Creative Commons Attribution 4.0" in hub.files("tester/set", "dataset")["README.md"].decode()
    assert str(recording.parent).encode() not in hub.everything()
    athena.does("pull", "tester/set", "set")
    here = Dataset.open(athena.home / "set")
    there = Dataset.open(built)
    assert here.hash == there.hash
    assert not (athena.home / "set" / "notes.txt").exists()
    for index in (0, 25, len(there) - 1):
        one, other = here[index], there[index]
        assert np.array_equal(one.chunk, other.chunk)
        assert np.array_equal(one.observation.images["front"], other.observation.images["front"])
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(athena.home / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 80
    assert np.allclose(rows[25]["action"], there._actions[25], atol=1e-7)
    assert np.array_equal(np.asarray(rows[0]["observation.images.front"]), there[0].observation.images["front"])


def test_a_smaller_set_leaves_no_old_rows_behind(hub, athena, built, recording, tmp_path) -> None:
    athena.does("push", built, "tester/set", *MIT)
    files = dict(hub.files("tester/set", "dataset"))
    old = "data/chunk-000/file-001.parquet"  # as a larger set before this one would have had
    listing = json.loads(files["athena_hub.json"])
    listing["files"][old] = dict(listing["files"]["data/chunk-000/file-000.parquet"])
    repo = hub.repos["dataset", "tester/set"]
    added = {old: files["data/chunk-000/file-000.parquet"], "athena_hub.json": json.dumps(listing).encode()}
    repo.commit("main", {**files, **added})
    athena.does("push", built, "tester/set", *MIT)
    assert old not in hub.files("tester/set", "dataset")


def test_a_set_that_is_not_whole_is_refused(built, recording, tmp_path) -> None:
    linked = tmp_path / "linked"
    build(BuildConfig(input=recording, out=linked, robot="toy", horizon=4, workers=1, link=True))
    config = PushConfig(input=linked, repo="me/set", license="mit", dry_run=True)
    with pytest.raises(AthenaError, match="without --link"):
        push(config)
    cut = tmp_path / "cut"
    shutil.copytree(built, cut)
    (cut / "meta" / "stats.json").unlink()
    with pytest.raises(AthenaError, match="lacks meta/stats.json"):
        push(dataclasses.replace(config, input=cut))
    with pytest.raises(AthenaError, match="--license"):
        push(dataclasses.replace(config, input=built, license=""))


def test_a_set_and_a_policy_of_one_name(hub, athena, built, tmp_path, toy) -> None:
    base = write_base(tmp_path / "base", toy)
    athena.does("push", built, "tester/both", *MIT)
    athena.does("push", base.path, "tester/both", *MIT)
    assert "is both a model and a dataset" in athena.run("pull", "tester/both", "x").sentence
    athena.does("pull", "tester/both", "x", "--type", "dataset")
    Dataset.open(athena.home / "x")


def test_the_client_alone_fetches_the_same_files(hub, athena, tmp_path, toy) -> None:
    """Somebody without this package: `snapshot_download` of the published repository."""
    base = write_base(tmp_path / "base", toy)
    athena.does("push", base.path, "tester/policy", *MIT)
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token=False)
    folder = Path(api.snapshot_download("tester/policy", local_dir=tmp_path / "snapshot"))
    Bundle.open(folder)
