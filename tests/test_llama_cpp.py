"""A decoder for llama.cpp: the stored numbers by another reading of the file, and the policy's answers in radians."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from athena_vla import embodiment
from athena_vla.bundle import Bundle
from athena_vla.embodiment import Embodiment
from athena_vla.engines import llama_cpp_engine
from athena_vla.errors import BundleError, DeviceError, ExportError, MissingDependency
from athena_vla.export import ExportConfig, export, gguf_decoder
from athena_vla.models.weights.packed import Packed
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import observations, small_model, write_base, write_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra llama)")
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float and quantised bundles of both families, and their exports for llama.cpp."""
    root, toy = tmp_path_factory.mktemp("llama"), embodiment.load("toy")
    found = {}
    for family, tokens in (("chunk", False), ("tokens", True)):
        model = small_model(toy, tokens=tokens)
        if tokens:  # a fresh decoder hardly mixes: its tokens would be the same for every frame
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    if key.endswith(("o_proj.weight", "down_proj.weight")):
                        weight.mul_(30)
        write_model(root / family, toy, model)
        found[family] = root / family
        for bits in (4, 8):
            name = f"{family}-int{bits}"
            quantize(QuantizeConfig(root / family, root / name, bits=bits, method="nearest", sensitivity=False))
            found[name] = root / name
    for name, path in list(found.items()):
        export(ExportConfig(path, root / f"{name}-llama", target="llama.cpp", compare=False))
        found[f"{name}-llama"] = root / f"{name}-llama"
    return found


def turned_back(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row `2 j` and `2 j + 1` of a head in the file are row `j` of its first and of its second half."""
    each = rows.shape[0] // heads
    out = np.empty_like(rows)
    for h in range(heads):
        for j in range(each // 2):
            out[h * each + j] = rows[h * each + 2 * j]
            out[h * each + each // 2 + j] = rows[h * each + 2 * j + 1]
    return out


def blocks(raw: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [out, in] and fp16 scales [out, blocks] of a stored tensor, read byte by byte."""
    size = 18 if kind == "Q4_0" else 34
    raw = raw.reshape(raw.shape[0], -1, size)
    scales = raw[..., :2].copy().view(np.float16)[..., 0]
    if kind == "Q8_0":
        return raw[..., 2:].view(np.int8).reshape(raw.shape[0], -1), scales
    low, high = raw[..., 2:] & 15, raw[..., 2:] >> 4
    return (np.concatenate([low, high], axis=2).astype(np.int8) - 8).reshape(raw.shape[0], -1), scales


@pytest.mark.parametrize("name", ["chunk", "chunk-int4", "chunk-int8", "tokens", "tokens-int4", "tokens-int8"])
def test_the_file_holds_the_stored_numbers_bit_by_bit(bundles: dict[str, Path], name: str) -> None:
    source, made = Bundle.open(bundles[name]), Bundle.open(bundles[f"{name}-llama"])
    reader = gguf.GGUFReader(made.path / "weights" / "decoder.gguf")
    tensors = {t.name: t for t in reader.tensors}
    text = source.spec.body.text  # pyright: ignore[reportAttributeAccessIssue]
    store, forms = source.store(), set()
    for layer in range(text.layers):
        for theirs, ours in PARTS.items():
            stored = store.read(f"body.language_model.model.layers.{layer}.{ours}.weight")
            tensor = tensors[f"blk.{layer}.{theirs}.weight"]
            kind = tensor.tensor_type.name
            forms.add(kind)
            heads = {"attn_q": text.heads, "attn_k": text.kv_heads}.get(theirs, 0)
            back = (lambda x, n=heads: turned_back(x, n)) if heads else (lambda x: x)
            assert list(tensor.shape) == [stored.shape[1], stored.shape[0]]
            if isinstance(stored, Packed):
                codes, scales = blocks(np.asarray(tensor.data).reshape(stored.shape[0], -1), kind)
                np.testing.assert_array_equal(back(codes), stored.codes.numpy())
                per_group = back(scales).reshape(stored.shape[0], -1, stored.group // 32)
                assert (per_group == per_group[..., :1]).all()
                np.testing.assert_array_equal(per_group[..., 0].view(np.uint16), stored.scales.numpy().view(np.uint16))
            else:
                np.testing.assert_array_equal(back(np.asarray(tensor.data)), stored.float().numpy())
        norm = store.read(f"body.language_model.model.layers.{layer}.input_layernorm.weight")
        assert isinstance(norm, torch.Tensor)
        np.testing.assert_array_equal(np.asarray(tensors[f"blk.{layer}.attn_norm.weight"].data), norm.float().numpy())
    assert forms == {{"": "F32", "int4": "Q4_0", "int8": "Q8_0"}[name.partition("-")[2]]} or "int4" in name
    assert ("output.weight" in tensors) == name.startswith("tokens")
    if name.startswith("tokens"):  # the output layer holds the rows whose logits are read, and no other
        model: Any = source.meta_model()
        tokens = model.action_tokens
        stored = store.read("body.language_model.lm_head.weight")
        whole = stored.dequantize().numpy() if isinstance(stored, Packed) else stored.float().numpy()
        output = tensors["output.weight"]
        raw = np.asarray(output.data)
        if output.tensor_type.name in ("Q4_0", "Q8_0"):
            codes, scales = blocks(raw.reshape(output.shape[1], -1), output.tensor_type.name)
            raw = codes * np.repeat(scales.astype(np.float32), 32, axis=1)
        np.testing.assert_array_equal(raw, whole[tokens.first : tokens.vocabulary])
        assert len(whole) > len(raw)
    said = {k: f.contents() for k, f in reader.fields.items()}
    assert said["athena.bundle"] == source.hash
    assert said["llama.rope.freq_base"] == pytest.approx(text.rope_theta)
    assert sum(made.manifest.stage_info["llama"]["forms"].values()) == len(tensors) - 1
    assert not (made.path / "weights" / "language.onnx").exists()
    technique = json.loads((made.path / "deployment_config.json").read_text())["technique"]
    assert technique["runtime"].startswith("llama.cpp")
    assert technique["weights"] == (
        (
            source.manifest.stage_info.get("layers")
            and {
                f"int{bits}": n
                for bits in (4, 8)
                if (n := sum(e["bits"] == bits for e in source.manifest.stage_info["layers"].values()))
            }
        )
        or "float"
    )


def test_what_llama_cpp_cannot_hold_is_refused(tmp_path: Path, toy: Embodiment) -> None:
    oft = write_base(tmp_path / "oft", toy, oft=True)
    with pytest.raises(ExportError, match="both ways"):
        export(ExportConfig(oft.path, tmp_path / "out", target="llama.cpp"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("columns", "groups", "bits"), [(64, 4, 4), (344, 1, 8), (40, 1, 8)])
def test_codes_that_fill_no_blocks_are_written_out_exactly(columns: int, groups: int, bits: Any) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (6, columns)) if bits == 4 else rng.integers(-127, 128, (6, columns))
    scales = (rng.random((6, groups)) + 1e-3).astype(np.float16)
    weight = Packed(torch.from_numpy(codes.astype(np.int8)), torch.from_numpy(scales), bits)
    assert gguf_decoder.form_of(weight) == ("F32", (6, columns), 24 * columns)
    exact = codes.astype(np.float64) * np.repeat(scales.astype(np.float64), columns // groups, axis=1)
    np.testing.assert_array_equal(gguf_decoder.content(weight, "F32").astype(np.float64), exact)


def test_16_bit_weights_keep_their_type(tmp_path: Path, toy: Embodiment) -> None:
    base = write_base(tmp_path / "base", toy, dtype=torch.bfloat16)
    made = export(ExportConfig(base.path, tmp_path / "out", target="llama.cpp", compare=False))
    tensors = {t.name: t for t in gguf.GGUFReader(made.path / "weights" / "decoder.gguf").tensors}
    stored = base.store().read("body.language_model.model.layers.0.mlp.up_proj.weight")
    assert isinstance(stored, torch.Tensor)
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "BF16"
    raw = np.asarray(tensors["blk.0.ffn_up.weight"].data).tobytes()
    assert raw == stored.contiguous().view(torch.uint8).numpy().tobytes()


def test_without_the_library_it_is_written_and_said(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = export(ExportConfig(bundles["chunk"], tmp_path / "out", target="llama.cpp"))
    assert "not replayed here" in done.note
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(MissingDependency, match="llama_cpp"):
        Policy.load(tmp_path / "out")


def test_too_old_a_library_is_named(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", SimpleNamespace(llama_init_from_model=1))
    with pytest.raises(ExportError, match="too old: it lacks llama_get_memory"):
        Policy.load(bundles["chunk-llama"])


def answers(path: Path, **changes: Any) -> np.ndarray:
    policy = Policy.load(path, **changes)
    return np.stack([policy.act(o).positions for o in observations(policy.robot, 4)])


class TestWithTheLibrary:
    """Needs llama-cpp-python."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra llama)")

    @pytest.mark.parametrize("family", ["chunk", "tokens"])
    def test_float_weights_give_torchs_answers(self, bundles: dict[str, Path], tmp_path: Path, family: str) -> None:
        """With the cache in float32 too, so that layout, turning and norms are what is compared."""
        exact = tmp_path / "exact"
        shutil.copytree(bundles[f"{family}-llama"], exact)
        manifest = json.loads((exact / "manifest.json").read_text())
        manifest["stage_info"]["llama"]["cache"] = "f32"
        (exact / "manifest.json").write_text(json.dumps(manifest))
        ours, theirs = answers(exact), answers(bundles[family])
        if family == "chunk":
            assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
        else:  # a decoded number lies in one of 256 bins
            assert np.array_equal(ours, theirs)
        assert np.ptp(theirs, axis=0).max() > 1e-3  # the frames differ

    @pytest.mark.parametrize("name", ["chunk-int4", "chunk-int8"])
    def test_quantised_weights_stay_near_torch_on_the_same_numbers(self, bundles: dict[str, Path], name: str) -> None:
        """Activations are rounded to 8 bits in blocks of 32; in radians, on a head that is made loud for it."""
        ours, theirs = answers(bundles[f"{name}-llama"]), answers(bundles[name])
        assert np.sqrt(np.mean((ours - theirs) ** 2)) <= 0.02 * np.abs(theirs).max()

    def test_prompts_of_any_length_and_batches_answer_alike(self, bundles: dict[str, Path]) -> None:
        policy = Policy.load(bundles["chunk-llama"])
        frames = observations(policy.robot, 4)
        alone = np.stack([policy.act(o).positions for o in frames])
        together = np.stack([c.positions for c in policy.act_batch(frames)])
        np.testing.assert_allclose(together, alone, atol=1e-6)
        assert policy.engine.taken.engine == "llama.cpp"

    def test_the_export_replays_what_it_wrote(self, bundles: dict[str, Path], tmp_path: Path) -> None:
        done = export(ExportConfig(bundles["chunk-int8"], tmp_path / "out", target="llama.cpp"))
        assert 0.0 <= done.deviation["max_rad"] < 0.5
        config = json.loads((tmp_path / "out" / "deployment_config.json").read_text())
        assert config["ran_on"]["engine"] == "llama.cpp"
        assert config["ran_on"]["precision"]

    def test_a_half_copied_file_and_one_of_another_bundle(self, bundles: dict[str, Path], tmp_path: Path) -> None:
        info = Bundle.open(bundles["chunk-int4-llama"]).manifest.stage_info
        for name, change, words in (
            ("cut", lambda f: f.write_bytes(f.read_bytes()[:5000]), "cut"),
            ("other", lambda f: shutil.copy(bundles["chunk-int8-llama"] / "weights" / f.name, f), "edited"),
        ):
            folder = tmp_path / name
            shutil.copytree(bundles["chunk-int4-llama"], folder)
            change(folder / "weights" / "decoder.gguf")
            with pytest.raises((ExportError, BundleError), match=words):
                Policy.load(folder)
            with pytest.raises(ExportError, match="cannot load|another bundle"):
                llama_cpp_engine.LlamaCpp(folder / "weights", info)

    def test_more_rows_than_it_was_made_for(self, bundles: dict[str, Path]) -> None:
        policy = Policy.load(bundles["chunk-llama"])
        frame = dataclasses.replace(observations(policy.robot, 1)[0], instruction="go on " * 3000)
        with pytest.raises((ExportError, Exception), match="shorten|too long|tokens"):
            policy.act(frame)


@pytest.mark.parametrize(
    ("said", "left_out"), [(b"AVX2 = 1 | AMX_INT8 = 1 |", True), (b"AVX2 = 1 | REPACK = 1 |", False)]
)
def test_kernels_for_amx_are_left_out(said: bytes, left_out: bool) -> None:
    """They ended this process with a signal on a machine that has the instructions (llama.cpp of 0.3.36)."""
    from types import SimpleNamespace

    from athena_vla.engines.llama_cpp_engine import _has_amx

    assert _has_amx(SimpleNamespace(llama_print_system_info=lambda: said)) is left_out
    assert _has_amx(SimpleNamespace()) is False


@pytest.mark.parametrize(
    ("device", "cards", "asked"),
    [
        ("cpu", (), ["cpu"]),
        ("auto", (0,), ["auto"]),
        ("cuda", (0,), ["auto"]),
        ("cuda:1", (0, 1), ["cuda:1"]),
        ("cuda:1", (), ["cuda:1", "cpu"]),  # llama.cpp has that card, ONNX Runtime has no code for cards
    ],
)
def test_the_graphs_beside_a_decoder_go_onto_its_card(device, cards, asked, monkeypatch) -> None:
    seen = []

    class StandIn(llama_cpp_engine.OnnxRuntime):
        def __init__(self, folder, info, threads, word) -> None:
            seen.append(word)
            if word.startswith("cuda:") and int(word[5:]) not in cards:
                raise DeviceError(f"Device '{word}' cannot be taken.")

    monkeypatch.setattr(llama_cpp_engine, "OnnxRuntime", StandIn)
    assert isinstance(llama_cpp_engine._graphs(Path("bundle"), {}, 1, device), StandIn)
    assert seen == asked
