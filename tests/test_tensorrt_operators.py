"""What TensorRT's parser takes is known before a board is at hand: every node and type, blocks, and 8-bit weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from athena_vla.errors import ExportError
from athena_vla.export import ExportConfig, export, target_device
from athena_vla.export.tensorrt_operators import refused
from athena_vla.models.parallel import positions_behind
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import write_base

NX = "jetson-orin-nx-16gb"


def graph(operator: str, kinds: list[int], domain: str = "", **attributes: Any) -> onnx.ModelProto:
    """One node on inputs of these types."""
    names = [f"x{i}" for i in range(len(kinds))]
    node = helper.make_node(operator, names, ["y"], name="planted", domain=domain, **attributes)
    inputs = [helper.make_tensor_value_info(n, k, [64, 64]) for n, k in zip(names, kinds, strict=True)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opset = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=opset)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (graph("CumSum", [TensorProto.INT64, TensorProto.INT64]), "no operator that it knows"),
        (graph("RotaryEmbedding", [TensorProto.FLOAT16]), "no operator that it knows"),
        (graph("MatMulNBits", [TensorProto.FLOAT16], "com.microsoft"), "is of com.microsoft"),
        (graph("MatMul", [TensorProto.BFLOAT16, TensorProto.BFLOAT16]), "reads BFLOAT16"),
        (graph("Sigmoid", [TensorProto.INT64]), "reads INT64"),
        (graph("DequantizeLinear", [TensorProto.INT8, TensorProto.FLOAT16], block_size=64), "reads INT8"),
        (graph("DequantizeLinear", [TensorProto.INT4, TensorProto.FLOAT16], block_size=32), "blocks of 32"),
        (graph("DequantizeLinear", [TensorProto.INT4, TensorProto.FLOAT16]), "blocks of a whole row"),
    ],
)
def test_what_the_parser_would_refuse_is_named(model: onnx.ModelProto, why: str) -> None:
    (said,) = refused(model)
    assert "'planted'" in said
    assert why in said


@pytest.mark.parametrize("block", [64, 128])
def test_what_it_takes_is_let_through(block: int) -> None:
    assert not list(refused(graph("Add", [TensorProto.INT64, TensorProto.INT64])))
    assert not list(refused(graph("DequantizeLinear", [TensorProto.INT4, TensorProto.FLOAT16], block_size=block)))


def test_the_export_is_refused_with_the_nodes_name(tmp_path: Path) -> None:
    onnx.save(graph("CumSum", [TensorProto.INT64, TensorProto.INT64]), str(tmp_path / "language.onnx"))
    with pytest.raises(
        ExportError, match=r"Graph 'language' holds what TensorRT 10\.3 does not take: CumSum 'planted'"
    ):
        target_device.require_parsable(tmp_path, {"graphs": {"language": {}}})


@pytest.mark.parametrize(("bits", "group"), [(8, 128), (4, 32)])
def test_weights_it_would_not_keep_are_written_in_16_bits_and_counted(tmp_path, toy, bits, group) -> None:
    """An 8-bit weight beside 16-bit activations is folded by TensorRT: the engine would be called suspicious."""
    base = write_base(tmp_path / "base", toy)
    quantize(QuantizeConfig(base.path, tmp_path / "q", bits=bits, group=group, sensitivity=False))
    made = export(ExportConfig(tmp_path / "q", tmp_path / "x", target=NX, engine="onnx"))
    assert "quantised weights are written in 16 bits" in made.note
    kinds = set()
    for file in (tmp_path / "x" / "weights").glob("*.onnx"):
        model = onnx.load(str(file), load_external_data=False)
        kinds |= {t.data_type for t in model.graph.initializer}
        assert not list(refused(model))
    assert not kinds & {TensorProto.INT8, TensorProto.INT4}
    assert made.deviation["max_rad"] < 0.02


def test_blocks_that_it_keeps_stay_4_bits(tmp_path, toy) -> None:
    base = write_base(tmp_path / "base", toy)
    quantize(QuantizeConfig(base.path, tmp_path / "q", group=64, sensitivity=False))
    made = export(ExportConfig(tmp_path / "q", tmp_path / "x", target=NX, engine="onnx"))
    model = onnx.load(str(tmp_path / "x" / "weights" / "language.onnx"), load_external_data=False)
    assert sum(n.op_type == "DequantizeLinear" for n in model.graph.node) >= 14
    assert "written in 16 bits" not in made.note


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_positions_count_real_rows_alone(padding: int) -> None:
    """As a running sum over the rows that count does, for every row."""
    words = torch.tensor([[True] * 4 + [False] * padding, [True] * 3 + [False] * (padding + 1)])
    patches = torch.ones(2, 6, dtype=torch.bool)
    valid = torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)
    real = torch.ones(2, 3, dtype=torch.bool)
    counted = torch.cat([valid, real], dim=1)
    running = counted.long().cumsum(1) - 1
    assert np.array_equal(positions_behind(valid, real, words), running)
