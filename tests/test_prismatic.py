"""Released checkpoints: written, read, saved again; every way in which a folder can be wrong; the Hub's cache."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from athena_vla.errors import ModelError, UnknownName
from athena_vla.models import conformance
from athena_vla.models import input_gates as gates
from athena_vla.models.body.body_spec import full_7b_body
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.released import pretrained
from athena_vla.models.released import released_weights as checkpoint
from athena_vla.models.released.release import release_config, spec_from_release
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.weights.store import TensorStore

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of the released layout in several shards, by the command that writes the 7B one."""
    out = tmp_path_factory.mktemp("released") / "openvla-tiny"
    script = runpy.run_path(str(REPOSITORY / "scripts" / "write_random_7b.py"))
    config = script["WriteConfig"](out=out, tiny=True, shard_bytes=200_000)
    assert script["write"](config) == out
    with pytest.raises(ModelError, match="exists already"):
        script["write"](config)
    return out


@pytest.fixture
def broken(released: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(released, tmp_path / "copy"))


def test_the_release_has_982_tensors_43_of_them_unread() -> None:
    with torch.device("meta"):
        body = Prismatic(full_7b_body(unused=True))
    state = body.state_dict()
    assert len(state) == 982  # readers without a token output count 981
    assert len(body.unused_parameters()) == 43
    assert sum(p.numel() for p in body.projector.parameters()) == 71_385_600
    assert sum(2 * t.numel() for t in state.values()) == pytest.approx(15.08e9, rel=1e-3)
    assert state["language_model.lm_head.weight"].shape == (32064, 4096)
    assert "vision_backbone.featurizer.blocks.23.ls1.scale_factor" in state
    # LoRA on all linear layers that are read: 439 modules of the reference, minus lm_head, two patch convolutions and
    # thirteen that never get a gradient.
    paths = body.linear_modules(("all-linear",), vision=True, projector=True)
    assert len(paths) == 439 - 1 - 2 - 13
    assert not set(body.unused_parameters()) & {f"{p}.weight" for p in paths}


def test_loading_reports_and_skips_what_nothing_reads(released: Path) -> None:
    whole = checkpoint.load(released, "float32", unused=True)
    lean = checkpoint.load(released, "float32", output=False)
    stored = TensorStore(released).names
    assert whole.skipped == ()
    assert set(lean.skipped) == {*whole.unused, "language_model.lm_head.weight"}
    assert set(lean.body.state_dict()) == set(stored) - set(lean.skipped)
    pixels = torch.randn(1, 6, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(lean.body.vision(pixels), whole.body.vision(pixels), rtol=0, atol=0)
    for name, tensor in whole.body.state_dict().items():
        stored_tensor = TensorStore(released).read(name)
        assert isinstance(stored_tensor, torch.Tensor)
        torch.testing.assert_close(tensor, stored_tensor.float(), rtol=0, atol=0)


def test_saving_gives_the_layout_back(released: Path, tmp_path: Path) -> None:
    first = checkpoint.load(released, "bfloat16", unused=True)
    for i, config in enumerate((first.config, None)):
        out = tmp_path / f"saved{i}"
        checkpoint.save(out, first.body, first.tokenizer_files, first.norm_stats, config=config, shard_bytes=200_000)
        second = checkpoint.load(out, "bfloat16", unused=True)
        assert second.spec == first.spec
        assert second.norm_stats == first.norm_stats
        assert second.tokenizer_files == first.tokenizer_files
        for name, tensor in first.body.state_dict().items():
            torch.testing.assert_close(second.body.state_dict()[name], tensor, rtol=0, atol=0)
        a, b = (conformance.load(p).predict_action(IMAGE, "lift the cup") for p in (released, out))
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ModelError, match="unused=True"):
        checkpoint.save(tmp_path / "no", checkpoint.load(released).body, {}, {})
    assert not (tmp_path / "no").exists()


def test_configuration_survives_a_round_trip() -> None:
    spec = full_7b_body(unused=True)
    from athena_vla.models.released.release import release_processor

    again = spec_from_release(json.loads(json.dumps(release_config(spec, {}))), release_processor(spec.images), "x")
    assert again.text == spec.text
    assert again.towers == spec.towers
    assert again.images == spec.images
    assert "oracle_timm_overrides" not in release_config(spec, {})


def test_nf4_quantises_the_decoder_and_stays_close(released: Path) -> None:
    pytest.importorskip("bitsandbytes")
    exact, small = (conformance.load(released, dtype=p) for p in ("float32", "nf4"))
    layers = [m for n, m in small.raw.body.named_modules() if type(m).__name__ == "Linear4bit"]
    assert len(layers) == 7 * exact.raw.spec.text.layers
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)
    pixels = exact.pixel_values(IMAGE)
    ids = exact.prompter.answer_ids("lift the cup")
    a, b = (c.logits(pixels, ids)[0] for c in (exact, small))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
    np.testing.assert_allclose(small.patches(pixels), exact.patches(pixels), atol=0.2)


@pytest.mark.parametrize("name", ["openvla", "openvla_chunk", "openvla_oft"])
def test_released_bodies_become_families_and_are_gated(released: Path, name: str) -> None:
    model = pretrained.from_release(
        name, released, Sizes(action_dim=5, state_dim=4, horizon=3, cameras=2), precision="float32"
    )
    assert gates.check_model(model.loop, model.engine()).blind_to == ()
    assert model.tokenizer_files()["tokenizer.json"] == (released / "tokenizer.json").read_bytes()
    with pytest.raises(UnknownName, match="openvla_chunk"):
        pretrained.from_release("pi0", released, Sizes(action_dim=5, state_dim=4, horizon=3))


def damage(change: Callable[[Path], object], match: str, broken: Path, kind: type[Exception] = ModelError) -> None:
    change(broken)
    with pytest.raises(kind, match=match):
        checkpoint.load(broken)


def edit(broken: Path, name: str, **change: object) -> None:
    raw = json.loads((broken / name).read_text())
    (broken / name).write_text(json.dumps({**raw, **change}))


def test_missing_shard(broken: Path) -> None:
    damage(lambda p: next(p.glob("model-00002*")).unlink(), "lacks 1 of .* weight files: model-00002", broken)


def test_truncated_shard(broken: Path) -> None:
    def cut(path: Path) -> None:
        shard = next(path.glob("model-00001*"))
        shard.write_bytes(shard.read_bytes()[:-1000])

    damage(cut, "not a readable safetensors file", broken)


def test_index_that_promises_what_is_not_there(broken: Path) -> None:
    def move(path: Path) -> None:
        index = json.loads((path / "model.safetensors.index.json").read_text())
        name = next(k for k, v in index["weight_map"].items() if v.startswith("model-00001"))
        index["weight_map"][name] = next(v for v in index["weight_map"].values() if v.startswith("model-00002"))
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    damage(move, "that the index promises", broken)


def test_index_that_is_no_json(broken: Path) -> None:
    damage(lambda p: (p / "model.safetensors.index.json").write_text("{"), "index .* cannot be read", broken)


def test_missing_unexpected_and_misshapen_weights(broken: Path) -> None:
    shard = next(broken.glob("model-00001*"))
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    tensors = load_file(shard)
    name = next(iter(tensors))
    kept = tensors.pop(name)
    save_file(tensors, shard)
    del index["weight_map"][name]
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"1 of .* are missing .{name}"):
        checkpoint.load(broken)
    save_file({**tensors, name: kept[..., :-1].contiguous(), "surplus.weight": kept}, shard)
    index["weight_map"] |= {name: shard.name, "surplus.weight": shard.name}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="1 are unexpected .surplus.weight"):
        checkpoint.load(broken)
    del index["weight_map"]["surplus.weight"]
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="1 wrong shapes"):
        checkpoint.load(broken)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(ModelError, match=r"has no config.json. It holds readme.txt"):
        checkpoint.load(tmp_path)
    with pytest.raises(ModelError, match="no folder"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(ModelError, match="not a Hub id"):
        checkpoint.load("openvla-7b")
    with pytest.raises(UnknownName, match="nf4"):
        checkpoint.load(tmp_path, "int3")  # pyright: ignore[reportArgumentType]


def test_configurations_of_other_models(broken: Path) -> None:
    keep = (broken / "config.json").read_text()
    raw = json.loads(keep)
    cases: list[tuple[dict[str, object], str]] = [
        ({"model_type": "llava"}, "configuration of a 'llava' model"),
        ({"text_config": {**raw["text_config"], "model_type": "mistral"}}, "model_type = 'mistral'"),
        ({"text_config": {**raw["text_config"], "rope_scaling": {"type": "linear", "factor": 2.0}}}, "scaled rotary"),
        ({"text_config": None}, "lacks or garbles"),
        ({"timm_model_ids": ["resnet50", "resnet50"]}, "no vision tower 'resnet50'"),
        ({"use_fused_vision_backbone": False}, "says otherwise"),
        ({"image_sizes": [42, 42]}, "takes 42 px"),
        ({"text_config": {**raw["text_config"], "hidden_size": 128}}, "wrong shapes"),
    ]
    for change, match in cases:
        edit(broken, "config.json", **change)
        with pytest.raises((ModelError, UnknownName), match=match):
            checkpoint.load(broken)
        (broken / "config.json").write_text(keep)
    (broken / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds a list"):
        checkpoint.load(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        checkpoint.load(broken)


def test_processors_and_tokenizers_that_do_not_fit(broken: Path) -> None:
    edit(broken, "preprocessor_config.json", image_resize_strategy="stretch", tvf_resize_params=None)
    with pytest.raises(UnknownName, match="letterbox"):
        checkpoint.load(broken)
    edit(broken, "preprocessor_config.json", image_resize_strategy="resize-naive", means=[[0.5] * 3])
    with pytest.raises(ModelError, match="one each per tower"):
        checkpoint.load(broken)
    (broken / "tokenizer.json").write_text("{}")
    edit(broken, "preprocessor_config.json", means=[[0.5] * 3] * 2)
    with pytest.raises(ModelError, match=r"'tokenizer.json' cannot be read"):
        conformance.load(broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer.json"):
        checkpoint.load(broken)


def test_oft_parts_that_cannot_be_used(broken: Path) -> None:
    head = broken / "action_head--10_checkpoint.pt"
    head.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        conformance.load(broken, platform="libero")
    torch.save({"module.noise_predictor.mlp_resnet.fc1.weight": torch.zeros(2)}, head)
    with pytest.raises(ModelError, match="not an L1 action head"):
        conformance.load(broken, platform="libero")
    torch.save({"module.model.fc1.weight": torch.zeros(2, 2), "module.model.fc2.weight": torch.zeros(7, 2)}, head)
    with pytest.raises(ModelError, match="does not fit: missing model.layer_norm1"):
        conformance.load(broken, platform="libero")
    head.rename(broken / "action_head--20_checkpoint.pt")
    (broken / "action_head--latest_checkpoint.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="steps 20, latest"):
        conformance.load(broken, platform="libero")
    for path in broken.glob("action_head*"):
        path.unlink()
    (broken / "vision_backbone--10_checkpoint.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="FiLM"):
        conformance.load(broken)


def test_hub_ids_load_from_the_cache_and_say_so_where_it_is_empty(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"'nobody/openvla' is not complete in the local cache, and offline mode is on"
    ):
        checkpoint.load("nobody/openvla", offline=True)
    with pytest.raises(ModelError, match=r"at revision 'main'"):
        checkpoint.load("nobody/openvla", revision="main", offline=True)
    cache = tmp_path / "models--nobody--openvla"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123abcd")
    shutil.copytree(released, cache / "snapshots" / "0123abcd")
    found = checkpoint.load("nobody/openvla", "float32", offline=True)
    assert found.folder == cache / "snapshots" / "0123abcd"


def test_single_towers_and_older_layouts(tmp_path: Path) -> None:
    """One tower, two-layer projector, letterbox, Vicuna prompt: the openvla-v01 kind."""
    from dataclasses import replace

    from athena_vla.models.body.body_spec import tiny_body, tower_spec, without_unused
    from athena_vla.models.body.images import SIGLIP_MEAN, SIGLIP_STD, image_spec
    from athena_vla.models.body.tiny_tokenizer import tiny_tokenizer_files

    for name in ("vit_so400m_patch14_siglip_224", "vit_large_patch14_reg4_dinov2.lvd142m"):
        tower = tower_spec(name, 28, width=24, depth=3, heads=2)
        spec = replace(
            tiny_body(width=32, layers=2, mlp_width=64, heads=4, kv_heads=2),
            towers=(tower,),
            projector="gelu-mlp",
            images=image_spec(28, "letterbox", [(SIGLIP_MEAN, SIGLIP_STD)]),
            template="vicuna",
            max_prompt_tokens=2048 - 4 - 256,
        )
        torch.manual_seed(0)
        body = Prismatic(spec)
        body.initialize()
        out = tmp_path / name
        checkpoint.save(out, body, tiny_tokenizer_files(), {"one": {"action": {"q01": [-1.0] * 3, "q99": [1.0] * 3}}})
        loaded = conformance.load(out)
        assert loaded.raw.spec == replace(spec, towers=(without_unused(tower),))
        assert loaded.prompter.text("go").endswith("take to go? ASSISTANT:")
        assert loaded.pixel_values(IMAGE).shape == (1, 3, 28, 28)
        assert loaded.predict_action(IMAGE, "go").shape == (3,)


def test_a_closed_store_maps_nothing_and_opens_again(released: Path) -> None:
    from athena_vla.models.weights.store import TensorStore

    def mapped() -> bool:
        return str(released.resolve()) in Path("/proc/self/maps").read_text()

    with TensorStore(released) as store:
        first = store.stored(store.names[0]).clone()
        assert mapped()
    assert not mapped()
    torch.testing.assert_close(store.read(store.names[0]), first, rtol=0, atol=0)
    store.close()
    checkpoint.load(released)
    assert not mapped()
