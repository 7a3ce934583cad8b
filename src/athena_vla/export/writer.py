"""Write one ONNX graph piece by piece: nodes in memory, weights streamed into a shared external file.

Knows the file format and nothing of torch graphs: a 7B graph costs one weight's memory at a time.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from athena_vla.errors import ExportError

OPSET = 21  # the first with INT4; the last that TensorRT 10.3 (JetPack 6.2) parses without new attention operators
IR_VERSION = 10
ALIGNMENT = 4096  # [bytes]: a weight that starts a page can be memory-mapped as it lies
INLINE = 1024  # [bytes]: smaller constants stay in the graph, where shape inference can see them

ELEMENT: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


class DataFile:
    """The external weights of all graphs of a bundle; a weight that two graphs share is stored once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: io.BufferedWriter = path.open("wb")
        self.places: dict[str, tuple[int, int]] = {}

    def place(self, key: str, content: bytes | memoryview) -> tuple[int, int]:
        """Offset and length of the content, appended on first sight of its key."""
        if key not in self.places:
            start = self.stream.tell()
            padding = -start % ALIGNMENT if len(content) >= ALIGNMENT else -start % 64
            self.stream.write(b"\0" * padding)
            self.places[key] = (start + padding, len(content))
            self.stream.write(content)
        return self.places[key]

    def close(self) -> None:
        self.stream.close()


class GraphWriter:
    """Nodes, constants and weights of one graph; every method returns the name of the value it made."""

    def __init__(self, name: str, data: DataFile) -> None:
        self.name = name
        self.data = data
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.known: dict[Any, str] = {}
        self.domains: set[str] = set()
        self.count = 0

    def op(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """One node with one used output (or the first of several, see `ops`)."""
        return self.ops(kind, *inputs, domain=domain, outputs=outputs, **attributes)[0]

    def ops(self, kind: str, *inputs: str, domain: str = "", outputs: int, **attributes: Any) -> list[str]:
        """One node with several outputs."""
        self.count += 1
        names = [f"{kind}_{self.count}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=f"{kind}_{self.count}", domain=domain, **attributes)
        )
        self.domains.add(domain)
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant by value; equal small ones share a name."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= INLINE else None
        if key is not None and key in self.known:
            return self.known[key]
        self.count += 1
        name = f"constant_{self.count}"
        if array.nbytes <= INLINE:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        else:
            element = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._external(name, f"{self.name}/{name}", element, array.shape, np.ascontiguousarray(array))
        if key is not None:
            self.known[key] = name
        return name

    def tensor(self, value: torch.Tensor, key: str | None = None) -> str:
        """A torch constant; `key` names a weight that other graphs may share."""
        if key is None:
            if value.dtype == torch.bfloat16:
                raise ExportError(f"Graph '{self.name}': a bfloat16 constant; export in float32 or float16.")
            return self.constant(value.detach().cpu().contiguous().numpy())
        content = value.detach().cpu().contiguous()
        return self.weight(key, ELEMENT[content.dtype], content.shape, content.reshape(-1).view(torch.uint8).numpy())

    def weight(self, key: str, element: int, shape: Sequence[int], content: NDArray[Any]) -> str:
        """A named weight in the external file, raw bytes in ONNX's layout."""
        if key not in self.known:
            self._external(key, key, element, shape, content)
            self.known[key] = key
        return self.known[key]

    def _external(self, name: str, key: str, element: int, shape: Sequence[int], content: NDArray[Any]) -> None:
        # Small pieces may be zero-dimensional, which has no bytes view.
        whole = np.ascontiguousarray(content)
        raw = whole.tobytes() if whole.nbytes < ALIGNMENT else whole.data.cast("B")
        offset, length = self.data.place(key, raw)
        tensor = TensorProto(name=name, data_type=element, dims=list(shape), data_location=TensorProto.EXTERNAL)
        for field, text in (("location", self.data.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=field, value=str(text))
        self.initializers.append(tensor)

    def save(
        self, path: Path, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The graph as a file beside the external data. Raises `ExportError` where it is not valid ONNX."""
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", OPSET)]
        imports += [helper.make_opsetid(d, 1) for d in sorted(self.domains) if d]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="athena_vla")
        path.write_bytes(model.SerializeToString())
        self.data.stream.flush()
        if not self.domains - {""}:
            try:
                onnx.checker.check_model(str(path))
            except onnx.checker.ValidationError as error:
                raise ExportError(f"Graph '{self.name}' is not valid ONNX: {error}") from error
        return model
