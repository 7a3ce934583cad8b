"""A bundle whose decoder runs in llama.cpp: one library and one file on an Orin's GPU and on this processor.

Vision, projector and heads stay ONNX graphs. Between the two the decoder's rows are copied through the host, some
megabytes a chunk. The decoder reads rows and not tokens; it keeps its own cache.
"""
# The library's functions and structures are made by ctypes.
# pyright: reportMissingImports=false

import ctypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from athena_vla.engines.host_memory import HostMemory
from athena_vla.engines.onnxruntime_engine import OnnxRuntime
from athena_vla.errors import DeviceError, ExportError, MissingDependency
from athena_vla.machine.device import parse
from athena_vla.models.contract import Engine, Taken, Value, Values

FILE = "decoder.gguf"
NEEDED = ("llama_init_from_model", "llama_get_memory", "llama_memory_seq_rm", "llama_model_meta_val_str")
CACHES = {"f16": 1, "f32": 0}  # ggml's numbers of types
FLASH = {"on": 1, "off": 0}
ALL_LAYERS = 999


class Owned(HostMemory):
    """Caches stay in llama.cpp: what the host loop passes on stands for them."""

    def grown(self, cache: Value, slots: int) -> Value:
        return cache

    def layers(self, cache: Value) -> Sequence[Value]:
        return ()

    def write(self, cache: Value, new: Value, position: Int[np.ndarray, " b"]) -> None:
        return


class LlamaCpp(Engine):
    """One decoder with one context, opened at once. `info` is the manifest's record of the export."""

    def __init__(self, folder: Path, info: Mapping[str, Any], threads: int = 1, device: str = "auto") -> None:
        """Raises `MissingDependency`, `DeviceError`, `ExportError`."""
        own = info.get("llama")
        if not isinstance(own, Mapping):
            raise ExportError(f"'{folder}' holds no decoder for llama.cpp; export with --target llama.cpp.")
        self._library = _library()
        self._own, self._count = own, int(own["outputs"])
        kind, card = parse(device)
        self.graphs = _graphs(folder, info, threads, device)
        self.memory = Owned()
        cuda = bool(self._library.llama_supports_gpu_offload()) and kind != "cpu"
        if kind == "cuda" and not cuda:
            raise DeviceError(
                f"Device '{device}' was not taken: llama.cpp has no GPU code or finds no card. Build it with "
                'CMAKE_ARGS="-DGGML_CUDA=on", or take --device cpu.'
            )
        beside = self.graphs.choice.index if self.graphs.choice.is_cuda else 0
        place = (_layers(own), beside if card is None else card) if cuda else (0, -1)
        self._decoder = _Decoder(self._library, folder / FILE, own, threads, *place)
        notes = ["" if cuda or device == "cpu" else "llama.cpp has no GPU code or finds no card"]
        notes += [f"vision and rows: {self.graphs.taken}"] if cuda else []
        notes += ["its kernels for AMX are left out, they crash"] if _has_amx(self._library) else []
        why = "; ".join(filter(None, notes))
        self.taken = Taken(
            "llama.cpp", f"cuda:{place[1]}" if cuda else "cpu", why=why, precision=", ".join(own["forms"])
        )

    def run(self, graph: str, values: Values, /) -> Values:
        if graph != "language":
            return self.graphs.run(graph, values)
        if "input_ids" in values:
            return {"hidden": self._hidden(values)}
        return self._next(values)

    def limit(self, threads: int) -> None:
        self._library.llama_set_n_threads(self._decoder.context, threads, threads)

    def _hidden(self, values: Values) -> NDArray[np.float32]:
        """`[b, h, e]`: one pass for each item, without the padding of its prompt."""
        rows = np.asarray(self.graphs.run("rows", values)["rows"], dtype=np.float32)
        mask = np.asarray(values["prompt_mask"], dtype=bool)
        patches = np.asarray(values["patches"]).shape[1]
        behind = rows.shape[1] - patches - mask.shape[1]
        found = []
        for item, words in zip(rows, mask, strict=True):
            seen, rest = np.ones(patches, dtype=bool), np.ones(behind, dtype=bool)
            real = np.concatenate([words[:1], seen, words[1:], rest])
            found.append(self._decoder.hidden(item[real], self._count))
        return np.stack(found)

    def _next(self, values: Values) -> Values:
        """Logits of the token after the last row, `[1, v]`; the cache holds what came before."""
        rows = np.asarray(values["rows"], dtype=np.float32)
        if len(rows) != 1:
            raise ExportError("llama.cpp answers one observation at a time here; serve with batch 1.")
        real = np.asarray(values["valid"], dtype=bool)[0]
        logits = self._decoder.logits(rows[0][real], int(np.asarray(values["position"])[0]))
        first, last = self._own["choices"]
        return {"logits": logits[None, first:last], "keys": np.zeros(0), "values": np.zeros(0)}


class _Decoder:
    """llama.cpp's model and context, and the one batch that is filled again and again."""

    def __init__(
        self, library: Any, path: Path, own: Mapping[str, Any], threads: int, gpu_layers: int, card: int
    ) -> None:
        """`card` is the number of the one that everything goes onto, -1 for none."""
        self._l, self._width, self._longest = library, int(own["width"]), int(own["context"])
        self._words, self._rows = bool(own["logits"]), int(own["rows"])
        settings = library.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        if _has_amx(library):  # its kernels end the process on some machines, even on those that have the instructions
            settings.use_extra_bufts = False
        if card >= 0:
            settings.split_mode, settings.main_gpu = 0, card  # one card: a small decoder gains nothing by two
        self._model = library.llama_model_load_from_file(str(path).encode(), settings) if path.is_file() else None
        if not self._model:
            raise ExportError(f"llama.cpp cannot load '{path}': it is missing, cut off, or newer than this llama.cpp.")
        self._require(path, own)
        context = library.llama_context_default_params()
        context.n_ctx = context.n_batch = self._longest
        context.n_ubatch = int(own.get("micro_batch") or self._longest)
        context.embeddings, context.pooling_type = not self._words, 0
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = CACHES[own["cache"]]
        if hasattr(context, "flash_attn_type"):
            # Fused attention rounds to 16 bits on a processor, whatever the cache holds; its speed is for cards.
            asked = own.get("flash_attention", "auto")
            context.flash_attn_type = FLASH.get(asked, FLASH["on" if gpu_layers and own["cache"] == "f16" else "off"])
        self.context = library.llama_init_from_model(self._model, context)
        if not self.context:
            raise ExportError(f"llama.cpp has not enough memory for a cache of {self._longest} rows of '{path}'.")
        self._batch = library.llama_batch_init(self._longest, self._width, 1)

    def __del__(self) -> None:
        if sys.is_finalizing():  # the library's functions are gone already
            return
        for free, held in (("llama_batch_free", "_batch"), ("llama_free", "context"), ("llama_model_free", "_model")):
            if getattr(self, held, None) is not None:
                getattr(self._l, free)(getattr(self, held))

    def hidden(self, rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """Hidden states `[count, e]` of the last rows, after the last norm; nothing is remembered."""
        self._pass(rows, 0, count)
        first = len(rows) - count
        return np.stack([self._output(self._l.llama_get_embeddings_ith, first + i, self._width) for i in range(count)])

    def logits(self, rows: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        """[v] of the token after the last row; rows at position 0 begin anew."""
        self._pass(rows, position, 1)
        return self._output(self._l.llama_get_logits_ith, len(rows) - 1, self._rows)

    def _pass(self, rows: NDArray[np.float32], position: int, count: int) -> None:
        if position + len(rows) > self._longest:
            raise ExportError(
                f"{position + len(rows)} rows are more than the {self._longest} that this decoder was exported for; "
                "shorten the instruction."
            )
        # What the cache holds from here on belongs to another observation, or to this step when it is asked again.
        self._l.llama_memory_seq_rm(self._l.llama_get_memory(self.context), 0, position, -1)
        rows, batch = np.ascontiguousarray(rows, dtype=np.float32), self._batch
        ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        batch.n_tokens = len(rows)
        for i in range(len(rows)):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position + i, 1, int(i >= len(rows) - count)
            batch.seq_id[i][0] = 0
        status = self._l.llama_decode(self.context, batch)
        if status != 0:
            raise ExportError(f"llama.cpp refused a pass of {len(rows)} rows (status {status}).")

    def _output(self, get: Any, index: int, width: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(get(self.context, index), (width,)).copy()

    def _require(self, path: Path, own: Mapping[str, Any]) -> None:
        """Raises `ExportError` for a file of another bundle."""
        text = ctypes.create_string_buffer(256)
        self._l.llama_model_meta_val_str(self._model, b"athena.bundle", text, len(text))
        if text.value.decode(errors="replace") != own["bundle"]:
            raise ExportError(f"'{path}' is the decoder of another bundle, or of another quantisation of this one.")


def _has_amx(library: Any) -> bool:
    """Whether llama.cpp would keep quantised weights in the form of its AMX kernels."""
    asked = getattr(library, "llama_print_system_info", None)
    return asked is not None and b"AMX_INT8 = 1" in (asked() or b"")


def _layers(own: Mapping[str, Any]) -> int:
    """How many layers lie on the card."""
    asked = int(own.get("gpu_layers", -1))
    return ALL_LAYERS if asked < 0 else asked


def _graphs(folder: Path, info: Mapping[str, Any], threads: int, device: str) -> OnnxRuntime:
    """The graphs beside the decoder: on its card where ONNX Runtime can have that one, else on the processor."""
    kind, card = parse(device)
    if card is None:
        return OnnxRuntime(folder, info, threads, "cpu" if kind == "cpu" else "auto")
    try:
        return OnnxRuntime(folder, info, threads, device)
    except DeviceError:
        return OnnxRuntime(folder, info, threads, "cpu")


def _library() -> Any:
    """llama.cpp's C interface. Raises `MissingDependency`, `ExportError` for one that is too old."""
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingDependency("llama_cpp", "llama", "to run a decoder with llama.cpp") from error
    gone = [name for name in NEEDED if not hasattr(llama_cpp, name)]
    if gone:
        raise ExportError(f"This llama-cpp-python is too old: it lacks {', '.join(gone)}. 0.3.16 or later has them.")
    _quiet(llama_cpp)
    llama_cpp.llama_backend_init()
    return llama_cpp


_kept: list[Any] = []  # a callback must outlive the library's use of it


def _quiet(library: Any) -> None:
    """llama.cpp tells a page about every file it opens; only this process's errors are ours to tell."""
    if not _kept:
        _kept.append(library.llama_log_callback(lambda level, text, data: None))
        library.llama_log_set(_kept[0], ctypes.c_void_p(0))
