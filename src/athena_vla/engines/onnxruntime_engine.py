"""The exported graphs in ONNX Runtime: on processors, and on cards by its CUDA or TensorRT provider.

Between graphs values stay where they are: arrays on the host, or on the card, bound by address. What ONNX Runtime
really took is read back from its sessions: it falls back to a processor without a word. The part for cards was not run
on one by us; the tests run its binding on host memory.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from athena_vla.engines.cuda_memory import CudaMemory, CudaRuntime, OnCard
from athena_vla.engines.graph_files import graph_file, graph_names
from athena_vla.engines.host_memory import HostMemory
from athena_vla.errors import DeviceError, ExportError, MissingDependency, UnknownName
from athena_vla.machine.device import Choice, Runtime, choose, parse, version_of
from athena_vla.models.contract import Array, Engine, Taken, Value, Values

Providers = Literal["auto", "cpu", "cuda", "tensorrt"]
_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
# Asked for on cards: which node went to which provider, where this version can say so.
_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_KINDS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class Session:
    """One loaded graph with the names and types of its ports."""

    session: Any
    inputs: dict[str, np.dtype[Any]]
    outputs: dict[str, np.dtype[Any]]


class OnnxRuntime(Engine):
    """One session per graph, loaded on first use; weights are memory-mapped where the graph has external data.

    `providers`: auto is CUDA, then the processor; tensorrt builds engines at a first start, for minutes. Raises
    `DeviceError` where a card was asked for by name and is not taken.
    """

    def __init__(
        self,
        folder: Path,
        stage_info: Mapping[str, Any],
        threads: int = 1,
        device: str = "auto",
        providers: Providers = "auto",
    ) -> None:
        self.folder, self.threads = folder, threads
        self.settings = dict(stage_info.get("session", {}))
        self.sessions: dict[str, Session] = {}
        self.choice, self.asked = _chosen(device, providers)
        self.memory: Any = HostMemory()
        if self.choice.is_cuda:
            self._load_on_card(device)
        where = self.choice
        self.taken = Taken("onnxruntime", where.device, where.name, where.why, self._read_back(), self._precision())

    def run(self, graph: str, values: Values, /) -> Values:
        loaded = self.sessions.get(graph) or self.load(graph)
        try:
            return self._bound(loaded, values) if isinstance(self.memory, CudaMemory) else _plain(loaded, values)
        except (ExportError, DeviceError):
            raise
        except Exception as error:  # the runtime raises its own types, with the port's name in the text
            raise ExportError(f"ONNX Runtime cannot run graph '{graph}' of '{self.folder}': {error}") from error

    def wait(self) -> None:
        if isinstance(self.memory, CudaMemory):
            self.memory.runtime.wait()

    def load(self, name: str) -> Session:
        """Load a graph now, rather than at its first call. Raises `ExportError`."""
        onnxruntime = _library()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in self.settings.items():
            options.add_session_config_entry(key, str(value))
        if self.choice.is_cuda:
            options.add_session_config_entry(_ASSIGNMENT, "1")
        file = graph_file(self.folder, name, "onnx")
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=self.asked)
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load graph '{name}' of '{self.folder}': {error}") from error
        ports = (session.get_inputs(), session.get_outputs())
        inputs, outputs = ({p.name: np.dtype(_KINDS[p.type]) for p in side} for side in ports)
        self.sessions[name] = Session(session, inputs, outputs)
        return self.sessions[name]

    def nodes(self) -> dict[str, int]:
        """Nodes by the provider that runs them; empty where this version of ONNX Runtime cannot say so."""
        counted: Counter[str] = Counter()
        for loaded in self.sessions.values():
            tell = getattr(loaded.session, "get_provider_graph_assignment_info", None)
            for part in tell() if tell is not None and self.choice.is_cuda else ():
                counted[part.ep_name] += len(part.get_nodes())
        return dict(counted)

    def _load_on_card(self, word: str) -> None:
        """All graphs now: only a session says whether its provider could start."""
        for name in graph_names(self.folder, "onnx"):
            self.load(name)
        first = _name(self.asked[0])
        lost = [n for n, s in self.sessions.items() if first not in s.session.get_providers()]
        if lost:
            why = f"ONNX Runtime could not start its {first} for {', '.join(lost)} and fell back to the processor"
            if parse(word)[0] == "cuda":
                raise DeviceError(f"Device '{word}' was not taken: {why}. Its log says which library it misses.")
            self.choice = Choice("cpu", why=why)
            return
        self.memory = CudaMemory(CudaRuntime(self.choice.index))

    def _bound(self, loaded: Session, values: Values) -> Values:
        """Inputs and outputs by address, on the card."""
        memory: CudaMemory = self.memory
        binding = loaded.session.io_binding()
        held = {k: memory.put(values[k], kind) for k, kind in loaded.inputs.items() if k in values}
        place = (self.device_type, self.choice.index)
        for name, array in held.items():
            binding.bind_input(name, *place, array.dtype.type, list(array.shape), array.pointer)
        for name in loaded.outputs:
            binding.bind_output(name, *place)
        loaded.session.run_with_iobinding(binding)
        answers = zip(loaded.outputs.items(), binding.get_outputs(), strict=True)
        return {n: OnCard(v.data_ptr(), tuple(v.shape()), kind, v) for (n, kind), v in answers}

    @property
    def device_type(self) -> str:
        return "cuda"

    def _read_back(self) -> tuple[str, ...]:
        if not self.sessions:
            return tuple(_name(p) for p in self.asked)
        return tuple(next(iter(self.sessions.values())).session.get_providers())

    def _precision(self) -> str:
        kinds = {str(k) for s in self.sessions.values() for k in s.outputs.values() if k.kind == "f"}
        return ", ".join(sorted(kinds))


def _plain(loaded: Session, values: Values) -> Values:
    """An output of one graph goes into the next without a copy: both sides share the memory through numpy."""
    feed = {k: _array(values[k], kind) for k, kind in loaded.inputs.items() if k in values}
    outputs = loaded.session.run(list(loaded.outputs), feed)
    return {k: np.asarray(v) for k, v in zip(loaded.outputs, outputs, strict=True)}


def _array(value: Value, kind: np.dtype[Any]) -> Array:
    """The array as the port's type: graphs in 16 bits take and give 16 bits, the host loop computes in 32."""
    return np.ascontiguousarray(np.asarray(value).astype(kind, copy=False))


def _chosen(device: str, providers: Providers) -> tuple[Choice, list[Any]]:
    """Where to run, and the providers to ask for. Raises `DeviceError`, `UnknownName`."""
    if providers not in get_args(Providers):
        raise UnknownName("provider", providers, get_args(Providers))
    onnxruntime = _library()
    offered = onnxruntime.get_available_providers()
    wanted = "cuda" if providers == "auto" else providers
    runtime = Runtime(
        f"onnxruntime {onnxruntime.__version__}",
        version_of(getattr(onnxruntime, "cuda_version", "") or "12") if _NAMES["cuda"] in offered else None,
        install="Install onnxruntime-gpu in place of onnxruntime, in the version that fits the driver.",
    )
    if providers == "cpu" and parse(device)[0] == "cuda":
        raise DeviceError(f"Device '{device}' and providers 'cpu' contradict each other; take one of them away.")
    choice = choose("cpu" if providers == "cpu" else device, runtime)
    if providers == "tensorrt" and (not choice.is_cuda or _NAMES["tensorrt"] not in offered):
        why = choice.why or f"{runtime.name} is built without it; it offers {', '.join(offered)}"
        raise DeviceError(f"Provider 'tensorrt' cannot be taken: {why}.")
    if not choice.is_cuda:
        return choice, [_NAMES["cpu"]]
    onnxruntime.preload_dlls()
    order = ("tensorrt", "cuda") if wanted == "tensorrt" else ("cuda",)
    return choice, [*((_NAMES[n], {"device_id": choice.index}) for n in order), _NAMES["cpu"]]


def _name(provider: Any) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export", "to run exported graphs") from error
    return onnxruntime
