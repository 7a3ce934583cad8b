"""Backends: the same chunks from every engine, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest

from athena_vla.bundle import Bundle
from athena_vla.engines.backends import Name, open_backend
from athena_vla.engines.graph_files import graph_file
from athena_vla.engines.onnxruntime_engine import OnnxRuntime
from athena_vla.errors import ExportError, UnknownName
from athena_vla.export import ExportConfig, export
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import observations, write_base


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, toy) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backends")
    write_base(folder / "base", toy)
    quantize(QuantizeConfig(input=folder / "base", out=folder / "int4", sensitivity=False))
    export(ExportConfig(input=folder / "base", out=folder / "float"))
    export(ExportConfig(input=folder / "int4", out=folder / "packed"))
    return {p.name: p for p in folder.iterdir()}


def test_onnxruntime_and_openvino_answer_as_torch(bundles, toy) -> None:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    frames = observations(toy, 3, seed=4)
    for exported, source in (("float", "base"), ("packed", "int4")):
        expected = Policy.load(bundles[source], "torch").chunks(frames)
        limits: dict[Name, float] = {"onnxruntime": 1e-4, "openvino": 1e-3}
        for backend, limit in limits.items():
            chunks = Policy.load(bundles[exported], backend).chunks(frames)
            np.testing.assert_allclose(chunks, expected, atol=limit, err_msg=f"{exported} on {backend}")


def test_a_bundle_that_is_not_exported_runs_on_torch_only(bundles) -> None:
    bundle = Bundle.open(bundles["base"])
    assert open_backend(bundle)[1].taken.engine == "torch"
    with pytest.raises(ExportError, match="run `athena export` on it"):
        open_backend(bundle, "onnxruntime")
    with pytest.raises(UnknownName, match="no backend 'caffe'"):
        open_backend(bundle, "caffe")  # pyright: ignore[reportArgumentType]


def test_what_was_taken_is_told(bundles) -> None:
    providers: dict[Name, tuple[str, ...]] = {"onnxruntime": ("CPUExecutionProvider",), "torch": ()}
    for backend, names in providers.items():
        bundle = Bundle.open(bundles["base" if backend == "torch" else "float"])
        _, engine = open_backend(bundle, backend, device="cpu")
        assert (engine.taken.engine, engine.taken.device, engine.taken.providers) == (backend, "cpu", names)
        assert engine.taken.why == ""


def test_unknown_graph_lists_the_graphs(bundles) -> None:
    with pytest.raises(UnknownName, match="head, language, vision"):
        graph_file(bundles["float"] / "weights", "decoder", "onnx")


def test_a_broken_graph_is_named(bundles, tmp_path) -> None:
    (tmp_path / "vision.onnx").write_bytes(b"not a graph")
    runner = OnnxRuntime(tmp_path, {}, 1)
    with pytest.raises(ExportError, match="cannot load graph 'vision'"):
        runner.run("vision", {})


def test_wrong_input_shape_is_one_clear_error(bundles) -> None:
    runner = OnnxRuntime(bundles["float"] / "weights", {}, 1)
    with pytest.raises(ExportError, match="cannot run graph 'vision'"):
        runner.run("vision", {"pixel_values": np.zeros((1, 6, 5, 5), np.float32)})
