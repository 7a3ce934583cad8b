"""What `athena export` for a device writes for every family, and which engine it says there is."""

import dataclasses
import json
import sys
from pathlib import Path

import onnx
import pytest
import torch

from athena_vla.bundle import Bundle
from athena_vla.cli import main
from athena_vla.export import ExportConfig, export, tensorrt_operators
from athena_vla.export import target_device as device
from athena_vla.models import openvla_chunk, openvla_oft
from athena_vla.models.architecture import Architecture
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import BODY, observations, small_model, write_base, write_model

NX = "jetson-orin-nx-16gb"
SIZES = {"horizon": 4, **BODY}


def models(toy) -> dict[str, Architecture]:
    sizes = {"action_dim": toy.action_dim, "state_dim": toy.state_dim, "cameras": len(toy.cameras), **SIZES}
    torch.manual_seed(0)
    return {
        "chunk": small_model(toy),
        "tokens": small_model(toy, tokens=True),
        "chunk with a prefix": openvla_chunk.OpenVLAChunk.from_spec(
            dataclasses.replace(openvla_chunk.tiny_spec(**sizes), prefix=2), {}
        ),
        "oft": openvla_oft.OpenVLAOFT.from_spec(openvla_oft.tiny_spec(**sizes), {}),
    }


@pytest.mark.parametrize("family", ["chunk", "tokens", "chunk with a prefix", "oft"])
def test_every_graph_of_every_family_is_standard_onnx(tmp_path, toy, family) -> None:
    """Opset 21 or older, no operator of one runtime, none that TensorRT 10.3 does not parse, weights outside."""
    base = write_model(tmp_path / "base", toy, models(toy)[family])
    quantize(QuantizeConfig(base.path, tmp_path / "int4", sensitivity=False))
    result = export(ExportConfig(tmp_path / "int4", tmp_path / "x", target=NX, precision="float32", engine="onnx"))
    assert set(result.graphs) == {g.name for g in base.model().graphs()}
    for name, graph in result.graphs.items():
        model = onnx.load(str(tmp_path / "x" / "weights" / f"{name}.onnx"), load_external_data=False)
        assert [(o.domain, o.version <= 21) for o in model.opset_import] == [("", True)]
        assert {n.domain for n in model.graph.node} == {""}
        assert list(tensorrt_operators.refused(model)) == []
        outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert all(t.ByteSize() < 2000 for t in model.graph.initializer), "large constants lie in the external file"
        assert outside or name == "head"
        assert graph["parity"]["relative_rms"] <= 1e-5
    frames = observations(toy, 2, seed=4)
    again = Policy.load(tmp_path / "x", "onnxruntime").chunks(frames)
    torch.testing.assert_close(again, Policy.load(tmp_path / "int4", "torch").chunks(frames), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy) -> Bundle:
    return write_base(tmp_path_factory.mktemp("base") / "base", toy)


def told(capsys, *words: object) -> tuple[int, dict]:
    with pytest.raises(SystemExit) as stop:
        main([*(str(w) for w in words), "--no-compare", "--json"])
    code = stop.value.code
    assert isinstance(code, int)
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.skipif(device.importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here")
def test_without_tensorrt_status_and_json_say_which_engine(base, tmp_path, capsys) -> None:
    code, result = told(capsys, "export", base.path, tmp_path / "nx", "--target", NX)
    assert (code, result["exit_status"], result["engine"]) == (3, 3, "onnx")
    assert "TensorRT is not installed here" in result["note"]
    assert "ONNX graphs are the fallback" in result["note"]
    assert Bundle.open(tmp_path / "nx").manifest.stage == "exported", "the fallback is whole"
    code, result = told(capsys, "export", base.path, tmp_path / "plain", "--target", NX, "--engine", "onnx")
    assert (code, result["engine"]) == (0, "onnx")
    code, result = told(capsys, "export", base.path, tmp_path / "cpu")
    assert (code, result["engine"]) == (0, "onnx")


@pytest.fixture
def tensorrt(tmp_path, monkeypatch) -> None:
    """TensorRT's Python calls as a stand-in that this process and the build script's can import."""
    place = tmp_path / "stand-in"
    place.mkdir()
    tests = str(Path(__file__).parent)
    (place / "tensorrt.py").write_text(
        f"import sys\nsys.path.insert(0, {tests!r})\nimport test_export\n"
        "globals().update({k: v for k, v in vars(test_export.stand_in()).items() if not k.startswith('__')})\n"
        "__version__ = '10.3.0'\n"
    )
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "tensorrt")


@pytest.mark.usefixtures("tensorrt")
def test_with_tensorrt_engines_are_built_where_the_gpu_is_the_targets(base, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(device, "_compute_capability", lambda: 87)
    code, result = told(capsys, "export", base.path, tmp_path / "nx", "--target", NX)
    assert (code, result["engine"]) == (0, "tensorrt")
    record = json.loads((tmp_path / "nx" / "weights" / "engines.json").read_text())
    assert {g["status"] for g in record["graphs"].values()} == {"built"}
    for here, sentence in ((0, "no GPU"), (89, "8.9, the target's is 8.7")):
        monkeypatch.setattr(device, "_compute_capability", lambda here=here: here)
        code, result = told(capsys, "export", base.path, tmp_path / f"not{here}", "--target", NX)
        assert (code, result["engine"]) == (3, "onnx")
        assert sentence in result["note"]
        assert not (tmp_path / f"not{here}" / "weights" / "engines.json").exists()


@pytest.mark.usefixtures("tensorrt")
def test_a_build_that_fails_has_its_own_status(base, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(device, "_compute_capability", lambda: 87)
    place = tmp_path / "stand-in" / "tensorrt.py"
    place.write_text(place.read_text() + "OnnxParser = None\n")
    code, result = told(capsys, "export", base.path, tmp_path / "nx", "--target", NX)
    assert (code, result["engine"]) == (1, "onnx")
    assert "could not be built" in result["note"]
