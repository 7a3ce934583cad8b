"""A model's graphs as ONNX files with one shared file of weights, streamed from its bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from athena_vla.bundle import Bundle
from athena_vla.export.linear import LinearForm
from athena_vla.export.translate import translate
from athena_vla.export.writer import DataFile
from athena_vla.models.architecture import Architecture, Graph
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import TensorStore
from athena_vla.progress import Progress, quiet

DATA = "model.data"
WRITING = "writing weights"  # what progress calls it


def write_graphs(
    source: Bundle,
    store: TensorStore,
    folder: Path,
    how: LinearForm,
    fixed: tuple[str, ...] = (),
    progress: Progress = quiet,
    graphs: Sequence[Graph] = (),
    model: Architecture | None = None,
) -> dict[str, Any]:
    """Graphs into `folder`, weights streamed into one shared file; returns the inputs and outputs of each.

    All graphs of the bundle's model, or some of `model`.
    """
    model = source.meta_model().eval() if model is None else model
    if how.dtype == torch.float16:
        model = model.half()
    names = parameter_names(model)
    data = DataFile(folder / DATA)
    ports: dict[str, Any] = {}
    written: set[str] = set()

    def read(name: str) -> Tensor | Packed:
        written.add(name)
        progress(len(written), len(store.names), WRITING)
        return store.read(name)

    try:
        for graph in graphs or model.graphs():
            own = {n: names[id(p)] for n, p in graph.module.named_parameters(remove_duplicate=False)}
            own |= {n: names[id(b)] for n, b in graph.module.named_buffers(remove_duplicate=False) if id(b) in names}
            ports[graph.name] = translate(
                graph,
                lambda name, own=own: read(own[name]),
                lambda name, own=own: own[name],
                folder / f"{graph.name}.onnx",
                data,
                how,
                fixed,
            )
            ports[graph.name]["profiles"] = [dict(p) for p in graph.profiles]
    finally:
        data.close()
    return ports


def parameter_names(model: Architecture) -> dict[int, str]:
    """Identity of each parameter and buffer -> its name in the state dict."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {id(t): n for n, t in tensors.items()}
