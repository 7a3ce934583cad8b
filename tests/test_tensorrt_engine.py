"""The TensorRT runner against a stand-in for the library (no engine was ever run): order of calls, bindings, refusals.

The stand-in executes a graph by reading and writing the very addresses it was given, so a binding that is wrong, stale
or set before its shape shows in the numbers.
"""
# numpy's stubs do not know arrays of ctypes.
# pyright: reportArgumentType=false, reportCallIssue=false

import ctypes
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from athena_vla.engines.tensorrt_engine import TensorRT
from athena_vla.errors import AthenaError, ExportError, UnknownName
from host_cuda import host_runtime

PORTS = {"x": "FLOAT", "ids": "INT64", "y": "HALF"}
INPUTS = ("x", "ids")
PROFILES = (((1, 1), (1, 4), (9, 8)), ((1, 9), (1, 9), (1, 16)))  # minimum, optimum, maximum of both inputs


class Context:
    """y = 2 x + sum(ids), in half precision, computed from addresses at execution."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None
        self.works = True

    def set_optimization_profile_async(self, index: int, stream: int) -> None:
        assert not self.calls, "before anything else"
        self.profile = index

    def set_input_shape(self, port: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", port))
        self.shapes[port] = shape
        assert self.profile is not None
        low, _, high = PROFILES[self.profile]
        return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, port: str) -> tuple[int, ...]:
        assert set(self.shapes) == set(INPUTS), "an output's shape is known once all input shapes are set"
        self.calls.append(("output shape", port))
        return self.shapes["x"]

    def set_tensor_address(self, port: str, address: int) -> None:
        self.calls.append(("address", port))
        self.addresses[port] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 0, "the stream that the copies are made in"
        self.calls.append(("execute", ""))
        assert set(self.addresses) == set(PORTS)

        def view(port: str, kind: type) -> np.ndarray:
            shape = self.shapes.get(port, self.shapes["x"])
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            raw = (ctypes.c_char * size).from_address(self.addresses[port])
            return np.frombuffer(raw, dtype=kind).reshape(shape)

        if self.works:
            view("y", np.float16)[:] = 2 * view("x", np.float32) + view("ids", np.int64).sum()
        return self.works


@pytest.fixture
def contexts(monkeypatch) -> list[Context]:
    """Every context that is made, in order."""
    made: list[Context] = []

    def create() -> Context:
        made.append(Context())
        return made[-1]

    names = list(PORTS)
    engine = SimpleNamespace(
        num_io_tensors=len(names),
        num_optimization_profiles=len(PROFILES),
        get_tensor_name=names.__getitem__,
        get_tensor_dtype=PORTS.__getitem__,
        get_tensor_mode=lambda port: "INPUT" if port in INPUTS else "OUTPUT",
        get_tensor_profile_shape=lambda port, i: PROFILES[i],
        create_execution_context=create,
    )
    module = ModuleType("tensorrt")
    kinds = {k: k for k in ("FLOAT", "HALF", "INT32", "INT64", "BOOL")}
    module.__dict__.update(
        __version__="10.3.0",
        Logger=type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        DataType=SimpleNamespace(**kinds),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return made


@pytest.fixture
def runner(contexts, tmp_path) -> TensorRT:
    built(tmp_path)
    return TensorRT(tmp_path, {}, cuda=host_runtime())


def built(tmp_path: Path) -> None:
    """A folder as the device's script leaves it."""
    for name, content in (("g.onnx", b"onnx"), ("g.plan", b"plan")):
        (tmp_path / name).write_bytes(content)
    entry = {
        "status": "built",
        "tensorrt": "10.3.0",
        "device": {"gpu": "Orin"},
        "onnx_sha256": hashlib.sha256(b"onnx").hexdigest(),
        "plan_sha256": hashlib.sha256(b"plan").hexdigest(),
    }
    (tmp_path / "engines.json").write_text(json.dumps({"engine": "tensorrt", "graphs": {"g": entry}}))


def test_the_numbers_come_from_the_bound_memory(runner, contexts) -> None:
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32).T  # not contiguous, as a caller may have it
    ids = np.array([[1, 2, 3]], dtype=np.int32)  # another integer type than the engine's
    y = runner.run("g", {"x": x, "ids": ids, "unused": np.zeros(1)})["y"]
    kept = runner.memory.read(y)
    assert kept.dtype == np.float16
    np.testing.assert_allclose(kept, (2 * x + 6).astype(np.float16), rtol=1e-3)
    # A second call with other shapes binds anew and leaves the first answer alone.
    longer = runner.run("g", {"x": np.ones((1, 8), np.float32), "ids": np.array([[5]])})["y"]
    np.testing.assert_array_equal(runner.memory.read(longer), np.full((1, 8), 7.0, np.float16))
    np.testing.assert_array_equal(runner.memory.read(y), kept)
    assert str(runner.taken) == "tensorrt on cuda:0 (Orin)"


def test_shapes_before_outputs_before_execution_before_synchronisation(runner, contexts) -> None:
    runner.run("g", {"x": np.ones((1, 2)), "ids": np.array([[1]])})
    kinds = [kind for kind, _ in contexts[0].calls]
    assert kinds.index("output shape") > max(i for i, k in enumerate(kinds) if k == "shape")
    assert kinds[-1] == "execute"
    assert runner.cuda.library.calls == ["wait"]
    assert {port for kind, port in contexts[0].calls if kind == "address"} == set(PORTS)


def test_each_kind_of_call_has_its_profile(runner, contexts) -> None:
    """Kernels are chosen per profile: a prompt and a single token are two kinds of call of one engine."""
    short, long = ({"x": np.ones((1, n)), "ids": np.ones((1, m))} for n, m in ((4, 4), (12, 9)))
    for inputs, total in ((short, 6.0), (long, 11.0), (short, 6.0), (long, 11.0)):
        y = runner.memory.read(runner.run("g", inputs)["y"])
        np.testing.assert_array_equal(y, np.full_like(y, total))
    assert [c.profile for c in contexts] == [0, 1], "made once each"


def test_refusals_are_one_sentence(runner, contexts) -> None:
    with pytest.raises(ExportError, match=r"needs the input 'ids'; it was given \['x'\]"):
        runner.run("g", {"x": np.ones((1, 2))})
    with pytest.raises(ExportError, match=r"'x' of shape \[1, 17\] is outside the engine's profiles"):
        runner.run("g", {"x": np.ones((1, 17)), "ids": np.array([[1]])})
    with pytest.raises(UnknownName, match="'other'"):
        runner.run("other", {})
    good = {"x": np.ones((1, 2)), "ids": np.array([[1]])}
    runner.run("g", good)
    contexts[0].works = False
    with pytest.raises(ExportError, match="could not run graph 'g'"):
        runner.run("g", good)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "g.plan").unlink(), r"g.plan' cannot be read \(No such file.*build_on_device"),
        (lambda f: (f / "g.onnx").unlink(), r"g.onnx' cannot be read"),
        (lambda f: (f / "g.plan").write_bytes(b"pla"), r"is not the file engine 'g' belongs to"),
        (lambda f: (f / "engines.json").write_text("{"), r"engines.json' cannot be read .*build_on_device"),
        (lambda f: (f / "engines.json").write_text("[1]"), r"lists no graphs"),
        (lambda f: (f / "engines.json").write_text('{"engine": "tensorrt", "graphs": [1]}'), r"lists no graphs"),
        (lambda f: spoiled(f, lambda e: e.pop("plan_sha256")), r"does not say plan_sha256 of engine 'g'"),
        (lambda f: spoiled(f, lambda e: e.update(device=3)), r"does not say the device of engine 'g'"),
        (lambda f: spoiled(f, lambda e: e.clear()), r"[Nn]o engine|engine in .* 'g'"),
    ],
)
def test_lost_and_damaged_files_are_sentences(contexts, tmp_path, damage, sentence) -> None:
    built(tmp_path)
    damage(tmp_path)
    with pytest.raises(AthenaError, match=sentence):
        TensorRT(tmp_path, {}, cuda=host_runtime()).run("g", {"x": np.ones((1, 2)), "ids": np.array([[1]])})


def spoiled(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """One entry of the record, changed."""
    record = json.loads((folder / "engines.json").read_text())
    change(record["graphs"]["g"])
    (folder / "engines.json").write_text(json.dumps(record))
