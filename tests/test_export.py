"""Export: every graph equals torch, in every form and for both kinds of family; device bundles; bad input."""
# Parts of a torch module are reached by name here; their types are not known before it runs.
# pyright: reportOperatorIssue=false

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from athena_vla import machine
from athena_vla.bundle import Bundle
from athena_vla.engines.deployment_config import write_deployment_config
from athena_vla.errors import BundleError, ExportError, UnknownName
from athena_vla.export import ExportConfig, export
from athena_vla.export.graph_trace import Affine, trace
from athena_vla.export.linear import LinearForm, linear
from athena_vla.export.translate import translate
from athena_vla.export.writer import DataFile, GraphWriter
from athena_vla.models.architecture import Graph
from athena_vla.models.lora import LoraSettings
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, codes, quantize
from host_cuda import host_runtime
from small_bundles import observations, write_base, write_finetuned

NX = "jetson-orin-nx-16gb"


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy) -> Bundle:
    return write_base(tmp_path_factory.mktemp("base") / "base", toy)


@pytest.fixture(scope="module")
def int4(base, tmp_path_factory) -> Bundle:
    path = tmp_path_factory.mktemp("int4") / "int4"
    quantize(QuantizeConfig(input=base.path, out=path, sensitivity=False))
    return Bundle.open(path)


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "x"
    export(ExportConfig(input=base.path, out=path))
    return path


@pytest.fixture(scope="module")
def on_device(int4, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("device") / "nx"
    export(ExportConfig(input=int4.path, out=path, target=NX))
    return path


def test_float_graphs_equal_torch(exported, base) -> None:
    bundle = Bundle.open(exported)
    assert bundle.manifest.stage == "exported"
    assert set(bundle.manifest.stage_info["graphs"]) == {g.name for g in base.model().graphs()}
    for graph in bundle.manifest.stage_info["graphs"].values():
        assert graph["parity"]["max_abs"] < 1e-4
    assert bundle.manifest.deviation["max_rad"] < 1e-4


def test_other_batches_and_prompt_lengths_than_the_traced_ones(exported, base) -> None:
    frames = observations(base.robot, 5, seed=7)
    torch_policy, onnx_policy = Policy.of(base, "torch"), Policy.load(exported)
    np.testing.assert_allclose(onnx_policy.chunks(frames), torch_policy.chunks(frames), atol=1e-4)
    together = np.stack([c.positions for c in onnx_policy.act_batch(frames)])
    np.testing.assert_allclose(together, torch_policy.chunks(frames), atol=1e-4)


def test_quantised_graphs_compute_with_the_stored_numbers(int4, tmp_path) -> None:
    result = export(ExportConfig(input=int4.path, out=tmp_path / "x"))
    assert result.graphs["language"]["parity"]["relative_rms"] < 1e-5
    assert "int4" in Bundle.open(tmp_path / "x").manifest.stage_info["weights"]["quantized_layers"]
    kinds = {
        n.op_type for n in onnx.load(str(tmp_path / "x/weights/language.onnx"), load_external_data=False).graph.node
    }
    assert "MatMulNBits" in kinds
    # With rounded activations the same bundle differs, and the record says which it is.
    rough = export(ExportConfig(input=int4.path, out=tmp_path / "r", accuracy="int8"))
    info = Bundle.open(tmp_path / "r").manifest.stage_info
    assert info["accuracy_level"] == 4
    assert rough.graphs["language"]["parity"]["relative_rms"] < 1e-5, "parity is measured at full accuracy"
    assert rough.deviation["max_rad"] != result.deviation["max_rad"]
    assert not list((tmp_path / "r" / "weights").glob("accurate*"))


def test_graphs_for_onnx_runtime_on_a_card(int4, tmp_path) -> None:
    """16 bits, weights as they are stored: read back from the file, codes and scales are the bundle's own."""
    result = export(ExportConfig(input=int4.path, out=tmp_path / "x", target="cuda"))
    assert (result.target, result.precision, result.engine, result.exit_status) == ("cuda", "float16", "onnx", 0)
    assert not (tmp_path / "x" / "device").exists()
    model = onnx.load(str(tmp_path / "x/weights/language.onnx"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    store = int4.store()
    wanted = {n for n in store.packed if ".layers.0." in n and store.packing(n)[0] == 4}
    seen = set()
    for node in products:
        name = node.input[1].partition(".nbits")[0]
        stored = store.read(name if name in store.packed else f"{name}.weight")
        scales = tensors[node.input[2]]
        assert scales.dtype == np.float16
        block = next(a.i for a in node.attribute if a.name == "block_size")
        np.testing.assert_array_equal(
            scales.reshape(stored.shape[0], -1), np.repeat(stored.scales.numpy(), stored.group // block, axis=1)
        )
        raw = tensors[node.input[1]].reshape(stored.shape[0], -1)
        if stored.bits == 4:
            raw = np.stack([raw & 15, raw >> 4], axis=2).reshape(stored.shape[0], -1)
        np.testing.assert_array_equal(raw.astype(np.int16) - (8 if stored.bits == 4 else 128), stored.codes.numpy())
        seen.add(name)
    assert len(seen) >= len(wanted) > 0
    ran = json.loads((tmp_path / "x/deployment_config.json").read_text())["ran_on"]
    assert ran["providers"], "what was really taken is read back"
    assert result.graphs["language"]["parity"]["relative_rms"] < 0.05
    plain = export(ExportConfig(input=int4.path, out=tmp_path / "f", target="cuda", precision="float32"))
    assert plain.graphs["language"]["parity"]["relative_rms"] < 1e-5


def test_autoregressive_family(tmp_path, toy) -> None:
    base = write_base(tmp_path / "base", toy, tokens=True)
    result = export(ExportConfig(input=base.path, out=tmp_path / "x"))
    assert set(result.graphs) == {"vision", "words", "language"}
    assert all(g["parity"]["max_abs"] < 1e-4 for g in result.graphs.values())
    frames = observations(toy, 3, seed=3)
    same = Policy.load(tmp_path / "x").chunks(frames) == Policy.of(base, "torch").chunks(frames)
    assert same.all(), "greedy tokens differ"
    ports = result.graphs["language"]
    assert ports["outputs"]["logits"]["shape"][-1] == 256, "the action tokens alone"
    kinds = [
        n.op_type for n in onnx.load(str(tmp_path / "x/weights/language.onnx"), load_external_data=False).graph.node
    ]
    joined = [n for n in kinds if n == "Concat"]
    layers = base.model().body_spec.text.layers  # pyright: ignore[reportAttributeAccessIssue]
    assert len(joined) < 6 * layers, "caches are not joined with their new row"
    # Prompt and single tokens are calls of one graph: the weights are stored, and held, once.
    files = {p.name: p.stat().st_size for p in (tmp_path / "x" / "weights").iterdir()}
    parameters = sum(p.numel() for p in base.model().parameters()) * 4
    assert files["model.data"] < 1.2 * parameters


@pytest.mark.parametrize("bits", [None, 8])
def test_only_the_rows_that_are_read_are_written(tmp_path, bits) -> None:
    """An output layer followed by a slice costs the slice: 256 action tokens of 32,000."""
    torch.manual_seed(0)
    head = torch.nn.Linear(128, 40, bias=False).eval()

    class Tail(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.head(x)[..., 10:26] * 2,)

    weight = head.weight.detach().clone() if bits is None else codes.nearest(head.weight.detach(), bits, 128)
    graph = Graph("tail", Tail().to("meta"), {"x": torch.zeros(1, 3, 128)}, ("y",), {"x": {0: "batch"}})
    data = DataFile(tmp_path / "d.data")
    translate(graph, lambda n: weight, lambda n: n, tmp_path / "tail.onnx", data, LinearForm("contrib"))
    data.close()
    assert data.places
    assert all(length <= 16 * 128 * 4 for _, length in data.places.values())
    x = torch.randn(2, 3, 128)
    session = onnxruntime.InferenceSession(str(tmp_path / "tail.onnx"), providers=["CPUExecutionProvider"])
    plain = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
    expected = 2 * (x @ plain.t())[..., 10:26]
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_device_graphs_are_standard_onnx(int4, tmp_path, precision) -> None:
    result = export(ExportConfig(input=int4.path, out=tmp_path / "x", target=NX, precision=precision))
    for name in result.graphs:
        model = onnx.load(str(tmp_path / "x" / "weights" / f"{name}.onnx"), load_external_data=False)
        assert {o.domain for o in model.opset_import} == {""}
        assert model.opset_import[0].version <= 21
        onnx.checker.check_model(str(tmp_path / "x" / "weights" / f"{name}.onnx"))
    blocked = [
        n
        for n in onnx.load(str(tmp_path / "x/weights/language.onnx"), load_external_data=False).graph.node
        if n.op_type == "DequantizeLinear"
    ]
    block = {a.name: a.i for a in blocked[0].attribute}
    assert block["axis"] == 0
    assert block["block_size"] in (64, 128)
    limit = 1e-5 if precision == "float32" else 5e-3
    assert result.graphs["language"]["parity"]["relative_rms"] < limit


def test_int4_weights_on_disk_are_the_codes(tmp_path) -> None:
    weight = codes.nearest(torch.randn(8, 128, generator=torch.Generator().manual_seed(0)), 4, 64)
    data = DataFile(tmp_path / "d.data")
    writer = GraphWriter("g", data)
    writer.nodes[:] = []
    y = linear(writer, "x", "w", weight, None, LinearForm("qdq"))
    value = onnx.helper.make_tensor_value_info
    ports = (value("x", 1, ["m", 128]), value(y, 1, ["m", 8]))
    writer.save(tmp_path / "g.onnx", [ports[0]], [ports[1]])
    data.close()
    stored = onnx.load(str(tmp_path / "g.onnx"))
    array = next(onnx.numpy_helper.to_array(i) for i in stored.graph.initializer if i.data_type == 22)
    assert array.astype(np.int8).tolist() == weight.codes.t().tolist()


def test_numbers_that_vary_are_found() -> None:
    class Lengths(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.cat([x, x], dim=1) + torch.arange(2 * x.shape[1], device=x.device)[None, :, None],)

    graph = Graph("g", Lengths(), {"x": torch.zeros(1, 5, 3)}, ("y",), {"x": {0: "batch", 1: "tokens"}})
    traced = trace(graph, torch.float32)
    shape = traced.shape(next(n for n in traced.program.graph.nodes if "cat" in n.name))
    assert shape == [Affine(0, (("batch", 1),)), Affine(0, (("tokens", 2),)), 3]


def test_unknown_operator_is_named(tmp_path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.special.bessel_j0(x),)

    data = DataFile(tmp_path / "d")
    graph = Graph("odd", Odd(), {"x": torch.zeros(2, 3)}, ("y",))
    with pytest.raises(ExportError, match=r"'odd': operator 'aten.special_bessel_j0.default' has no ONNX translation"):
        translate(graph, lambda n: torch.zeros(1), lambda n: n, tmp_path / "g.onnx", data, LinearForm("qdq"))
    data.close()


def test_a_wrong_graph_is_not_written(base, tmp_path, monkeypatch) -> None:
    from athena_vla.export import operators

    monkeypatch.setitem(
        operators.OPERATORS,
        torch.ops.aten.silu.default,
        lambda t, n, x: operators.tensors.made(t, n, t.writer.op("Sigmoid", t.name(x))),
    )
    with pytest.raises(ExportError, match="'language' differs from torch"):
        export(ExportConfig(input=base.path, out=tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_disk_full(base, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataFile, "place", full)
    with pytest.raises(BundleError, match="No space left on device"):
        export(ExportConfig(input=base.path, out=tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_bad_input(base, exported, tmp_path) -> None:
    with pytest.raises(
        UnknownName,
        match=r"no export target 'jetson-nano'. Did you mean 'jetson-thor'\? Known: cpu, cuda, jetson-orin-nx-16gb",
    ):
        export(ExportConfig(input=base.path, out=tmp_path / "x", target="jetson-nano"))
    tuned = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))
    with pytest.raises(BundleError, match="run `athena merge` on it first"):
        export(ExportConfig(input=tuned.path, out=tmp_path / "x"))
    with pytest.raises(BundleError, match="is exported"):
        export(ExportConfig(input=exported, out=tmp_path / "x"))
    with pytest.raises(ExportError, match="float32"):
        export(ExportConfig(input=base.path, out=tmp_path / "x", precision="float16"))


def test_edited_weights_are_refused(base, tmp_path) -> None:
    export(ExportConfig(input=base.path, out=tmp_path / "x", compare=False))
    file = tmp_path / "x" / "weights" / "model.data"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(BundleError, match="model.data"):
        Policy.load(tmp_path / "x")


def test_deployment_config(exported, tmp_path) -> None:
    bundle = Bundle.open(exported)
    measured = {"kind": "measured_here", "tokens_per_second": 100.0}
    record = write_deployment_config(tmp_path / "deployment_config.json", bundle, measured=measured)
    assert record == json.loads((tmp_path / "deployment_config.json").read_text())
    assert record["achieved"]["measured_here"]["tokens_per_second"] == 100.0
    assert record["achieved"]["measured_on_device"] is None
    assert record["performance_target"]["tokens_per_second"] == 8.0
    assert record["input_shapes"]["language"]["input_ids"] == ["batch", "tokens"]


def test_the_device_bundle_says_what_it_is(on_device) -> None:
    config = json.loads((on_device / "deployment_config.json").read_text())
    assert config["hardware_target"] == "jetson_orin_16gb"
    predicted = config["achieved"].pop("predicted")
    assert config["achieved"] == {"measured_here": None, "measured_on_device": None}
    assert (predicted["kind"], predicted["device"], predicted["precision"]) == ("predicted", NX, "int4")
    engines = json.loads((on_device / "device" / "engines.json").read_text())
    assert "not run on a device" in engines["status"]
    low, typical, high = engines["graphs"]["language"]["profiles"][0]["input_ids"]
    assert low[0] == typical[0] == high[0] == 1
    assert low[1] < typical[1] < high[1]


def test_one_engine_reads_prompts_and_decodes_tokens(tmp_path, toy) -> None:
    """Two profiles of one graph: two engines would hold the decoder's weights twice on a device of 16 GB."""
    base = write_base(tmp_path / "base", toy, tokens=True)
    export(ExportConfig(input=base.path, out=tmp_path / "x", target="jetson-orin-nx-16gb"))
    graphs = json.loads((tmp_path / "x" / "device" / "engines.json").read_text())["graphs"]
    prompt, token = graphs["language"]["profiles"]
    low, typical, high = (shape[1] for shape in prompt["rows"])
    assert 1 < low < typical < high
    assert prompt["keys_0"][0] == prompt["keys_0"][2] == [*token["keys_0"][0][:2], 1, *token["keys_0"][0][3:]]
    assert token["rows"][0] == token["rows"][2] == [1, 1, prompt["rows"][0][2]]
    assert token["keys_0"][0][2] <= low, "the shortest prompt's cache fits"
    assert token["keys_0"][2][2] >= high + base.spec.horizon * base.spec.action_dim - 1, "the longest prompt's too"
    policy = Policy.load(tmp_path / "x", "onnxruntime")
    observation = observations(toy, 1)[0]
    assert np.abs(policy.act(observation).positions - Policy.of(base).act(observation).positions).max() < 0.02


def run_script(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "device" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_without_tensorrt_the_script_says_so(on_device) -> None:
    done = run_script(on_device, "build_on_device.py")
    assert done.returncode == 3, done.stderr
    record = json.loads((on_device / "weights" / "engines.json").read_text())
    assert record["engine"] == "onnx"
    assert "ONNX graphs are the fallback" in record["reason"]
    from athena_vla.errors import MissingDependency

    with pytest.raises((MissingDependency, ExportError)):
        Policy.load(on_device, "tensorrt")


def test_trtexec_commands_are_strongly_typed_and_profiled(on_device) -> None:
    done = run_script(on_device, "build_on_device.py", "--trtexec")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3
    for words in lines:
        assert words[0] == "trtexec"
        assert "--stronglyTyped" in words
        assert not {"--fp16", "--int8", "--best"} & set(words), "gone with weak typing"
        assert all(w.startswith("--") for w in words[1:])
    language = next(words for words in lines if "--onnx=weights/language.onnx" in words)
    assert any(w.startswith("--minShapes=") and "input_ids:1x2" in w for w in language)


def test_verify_on_device_replays_the_bundle(on_device) -> None:
    done = run_script(on_device, "verify_on_device.py", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    verified = json.loads((on_device / "device" / "verified.json").read_text())
    assert verified["passed"]
    assert verified["kind"] == ("measured_on_device" if machine.is_jetson() else "measured_here")
    refused = run_script(on_device, "verify_on_device.py", "--backend", "onnxruntime", "--limit", "0")
    assert refused.returncode == 4


def test_bench_on_device_completes_the_deployment_config(on_device) -> None:
    """Here the graphs run in ONNX Runtime, and the figures stand under the word that is true of this machine."""
    done = run_script(on_device, "bench_on_device.py", "--backend", "onnxruntime", "--runs", "100")
    assert done.returncode == 0, done.stderr
    record = json.loads((on_device / "device" / "deployment_config.json").read_text())
    word, other = ("measured_on_device", "measured_here")[:: 1 if machine.is_jetson() else -1]
    assert record["achieved"][word]["kind"] == word
    assert record["achieved"][word]["tokens_per_second"] > 0
    assert {"meets_tokens_target", "meets_control_rate"} <= set(record["achieved"][word])
    assert record["achieved"][other] is None
    raw = json.loads((on_device / "device" / "measured.json").read_text())
    assert len(raw["samples_s"]["whole action"]) == 100
    Bundle.open(on_device)  # what it wrote is not part of the bundle, whose hashes still hold


def test_bench_on_device_without_engines_says_what_is_missing(on_device) -> None:
    done = run_script(on_device, "bench_on_device.py", "--runs", "100")
    assert done.returncode not in (0, 1)
    assert "tensorrt" in (done.stdout + done.stderr).lower()


def stand_in(version: str = "10.3.0", size: int = 1000, layers: str = '{"Layers": []}') -> ModuleType:
    """The calls of TensorRT's Python API that the build script makes, recorded; no engine comes out."""
    made: dict[str, object] = {"profiles": []}
    profile = SimpleNamespace(set_shape=lambda *a: made["profiles"].append(a))  # pyright: ignore
    config = SimpleNamespace(
        set_memory_pool_limit=lambda *a: None,
        add_optimization_profile=lambda p: None,
        create_timing_cache=lambda b: b,
        set_timing_cache=lambda c, ignore_mismatch: None,
        get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"cache"),
    )
    builder = SimpleNamespace(
        create_network=lambda flags: made.update(flags=flags),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: profile,
        build_serialized_network=lambda n, c: b"x" * size,
    )
    parser = SimpleNamespace(parse_from_file=lambda p: Path(p).is_file(), num_errors=0)
    inspector = SimpleNamespace(get_engine_information=lambda f: layers)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    module = ModuleType("tensorrt")
    logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    module.__dict__.update(
        __version__=version,
        made=made,
        Logger=logger,
        Builder=lambda logger: builder,
        OnnxParser=lambda network, logger: parser,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda b: engine),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
        LayerInformationFormat=SimpleNamespace(JSON=1),
    )
    return module


def script(on_device: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, on_device / "device" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_script_against_a_stand_in(on_device, monkeypatch) -> None:
    tensorrt = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(sys, "argv", ["build_on_device.py"])
    assert script(on_device, "build_on_device").main() == 0
    record = json.loads((on_device / "weights" / "engines.json").read_text())
    assert {g["status"] for g in record["graphs"].values()} == {"built"}
    assert tensorrt.made["flags"] == 2, "strongly typed"
    assert "input_ids" in {p[0] for p in tensorrt.made["profiles"]}
    assert (on_device / "weights" / "language.plan").is_file()


def test_engines_that_unpacked_their_weights_are_suspicious(on_device, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(size=200 << 20))
    monkeypatch.setattr(sys, "argv", ["build_on_device.py", "--graph", "language"])
    assert script(on_device, "build_on_device").main() == 4
    record = json.loads((on_device / "weights" / "engines.json").read_text())
    assert "unpacked to 16 bits" in record["graphs"]["language"]["problem"]


def test_engines_of_another_version_or_gpu_or_graph(on_device, monkeypatch) -> None:
    from athena_vla.engines.tensorrt_engine import TensorRT

    monkeypatch.setitem(sys.modules, "tensorrt", stand_in())
    monkeypatch.setattr(sys, "argv", ["build_on_device.py"])
    assert script(on_device, "build_on_device").main() == 0
    info = Bundle.open(on_device).manifest.stage_info
    folder = on_device / "weights"
    engine = TensorRT(folder, info, cuda=host_runtime())
    with pytest.raises(UnknownName, match="no engine in"):
        engine._load("nothing")
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(version="10.16.1"))
    with pytest.raises(ExportError, match=r"built with TensorRT 10.3.0, here is 10.16.1"):
        TensorRT(folder, info, cuda=host_runtime())._load("language")
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in())
    record = json.loads((folder / "engines.json").read_text())
    record["graphs"]["language"]["device"]["gpu"] = "NVIDIA GeForce RTX 4090"
    (folder / "engines.json").write_text(json.dumps(record))
    with pytest.raises(ExportError, match="built on 'NVIDIA GeForce RTX 4090', this is 'Orin'"):
        TensorRT(folder, info, cuda=host_runtime())._load("language")
    record["graphs"]["language"]["device"]["gpu"] = "Orin"
    record["graphs"]["language"]["plan_sha256"] = "0"
    (folder / "engines.json").write_text(json.dumps(record))
    with pytest.raises(ExportError, match="is not the file engine"):
        TensorRT(folder, info, cuda=host_runtime())._load("language")


def test_wrong_number_of_images(exported, base) -> None:
    from athena_vla.errors import InvalidObservation

    policy = Policy.load(exported)
    frame = observations(base.robot, 1)[0]
    with pytest.raises(InvalidObservation, match="needs cameras"):
        policy.act(dataclasses.replace(frame, images={}))


def test_models_that_do_not_fit_are_compared_with_weights_from_disk(int4, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("athena_vla.offload.IN_MEMORY", 0)
    monkeypatch.setattr("athena_vla.offload.RESIDENT", 10_000)
    result = export(ExportConfig(input=int4.path, out=tmp_path / "x"))
    assert result.graphs["language"]["parity"]["relative_rms"] < 1e-5
