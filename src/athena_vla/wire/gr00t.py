"""GR00T's policy protocol as pure functions: both forms of its arrays, nested and flat observations, modalities.

Knows the messages of NVIDIA's public servers and clients (N1.6 and N1.7) and the robot's groups; nothing of sockets or
models. NEVER MET a real client: written from the published protocol, and tested on bytes that public libraries made.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, WireError
from athena_vla.wire.codec import read_array, require_few_values
from athena_vla.wire.protocols import RequestParser

Form = Literal["n1.6", "n1.7"]
ENDPOINTS = ("get_action", "get_modality_config", "ping", "reset")
LANGUAGE = "annotation.human.task_description"
TASK_KEYS = (LANGUAGE, "annotation.human.action.task_description", "task")
MAX_BATCH = 64  # observations in a request
N16, N17 = "__ndarray_class__", b"nd"
MODALITY = ("__ModalityConfig_class__", "__ModalityConfig__")  # of N1.6 and N1.7
NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Call:
    """One request, read: which endpoint, with which data, and in which form its arrays came."""

    endpoint: str
    data: Mapping[str, Any]
    token: str
    form: Form


def read_call(message: bytes) -> Call:
    """Raises `WireError` for what is no request."""
    require_few_values(message)
    forms: set[Form] = set()

    def hook(raw: dict[Any, Any]) -> Any:
        if N16 in raw:
            forms.add("n1.6")
            return _read_n16(raw)
        if N17 in raw:
            forms.add("n1.7")
            return _read_n17(raw)
        return raw

    try:
        raw = msgpack.unpackb(message, object_hook=hook, strict_map_key=True)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"{len(message)} bytes are not a msgpack message: {error or type(error).__name__}.") from error
    if not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
        raise WireError("A request is a map with 'endpoint' and, for get_action, 'data'.")
    unknown = sorted(set(raw) - {"endpoint", "data", "api_token"})
    if unknown:
        raise WireError(f"A request has 'endpoint', 'data' and 'api_token', not {[k[:80] for k in unknown[:8]]}.")
    endpoint, data, token = raw.get("endpoint", "get_action"), raw.get("data"), raw.get("api_token", "")
    if not isinstance(endpoint, str) or not isinstance(data, dict | None) or not isinstance(token, str | None):
        raise WireError("In a request, 'endpoint' and 'api_token' are text and 'data' is a map.")
    if len(forms) > 1:
        raise WireError("The arrays of one request come in two forms, of N1.6 and of N1.7; send one.")
    return Call(endpoint, data or {}, token or "", forms.pop() if forms else "n1.6")


def observations(call: Call, parser: RequestParser) -> list[Observation]:
    """The observations of a `get_action`, one for each entry of the batch, the last of several time steps.

    Raises `InvalidObservation` with what the robot needs.
    """
    unknown = sorted(set(map(str, call.data)) - {"observation", "options"})
    raw = call.data.get("observation")
    if unknown or not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
        raise InvalidObservation(f"get_action takes 'observation', a map, and 'options'; unknown are {unknown[:8]}.")
    if call.data.get("options"):
        raise InvalidObservation(f"This policy takes no 'options'; it got {str(call.data['options'])[:80]}.")
    robot = parser.robot
    video, state, language = _parts(raw)
    _require_known(video, robot.camera_names, "video", robot)
    _require_known(state, tuple(robot.state_groups), "state", robot)
    texts = _texts(language)
    count = len(texts)
    images = {c: _batch(value, "video", c, count, 5) for c, value in video.items()}
    if state or not parser.state_optional:
        missing = [g for g in robot.state_groups if g not in state]
        if missing:
            raise InvalidObservation(
                f"{robot.name} needs the state of groups {list(robot.state_groups)}; {missing} are missing."
            )
        groups = {g: _batch(state[g], "state", g, count, 3) for g in robot.state_groups}
        states = [_whole_state(groups, i, robot) for i in range(count)]
    else:
        states = [robot.state_columns.default] * count
    return [
        parser.checked(
            Observation({c: image[i, -1] for c, image in images.items()}, states[i], parser.text(texts[i], "language"))
        )
        for i in range(count)
    ]


def action_reply(chunks: list[ActionChunk], robot: Embodiment, form: Form) -> bytes:
    """A list of two, as clients read it: group -> float32 `[B, H, D]` [rad], and a map of information."""
    positions = np.stack([c.positions for c in chunks]).astype(np.float32)
    column = {name: i for i, name in enumerate(chunks[0].joint_names)}
    action = {
        group: positions[:, :, [column[n] for n in names]]
        for group, names in robot.action_groups.items()
        if all(n in column for n in names)
    }
    return packed([action, {}], form)


def modality_reply(robot: Embodiment, horizon: int) -> bytes:
    """What the robot sends and takes. Marked in the way of both forms: the request does not say which one it is."""
    modalities = {
        "video": (list(robot.camera_names), [0]),
        "state": (list(robot.state_groups), [0]),
        "action": (list(robot.action_groups), list(range(horizon))),
        "language": ([LANGUAGE], [0]),
    }
    marked = dict.fromkeys(MODALITY, True)
    configs = {
        name: marked | {"as_json": {"delta_indices": steps, "modality_keys": keys}}
        for name, (keys, steps) in modalities.items()
    }
    return packed(configs, "n1.6")


def error_reply(text: str) -> bytes:
    """A map with `error`, which every client turns into an exception."""
    return packed({"error": text}, "n1.6")


def packed(message: Any, form: Form) -> bytes:
    """A message with its arrays in one of the two forms."""
    raw = msgpack.packb(message, default=_n16 if form == "n1.6" else _n17)
    assert isinstance(raw, bytes)
    return raw


def _n16(value: Any) -> dict[str, Any]:
    assert isinstance(value, np.ndarray)
    head = repr({"descr": value.dtype.str, "fortran_order": False, "shape": value.shape})
    padding = " " * (-(len(NPY) + 4 + len(head) + 1) % 64)
    text = (head + padding + "\n").encode("latin-1")
    return {N16: True, "as_npy": NPY + b"\x01\x00" + len(text).to_bytes(2, "little") + text + value.tobytes()}


def _n17(value: Any) -> dict[bytes, Any]:
    assert isinstance(value, np.ndarray)
    return {N17: True, b"type": value.dtype.str, b"kind": b"", b"shape": list(value.shape), b"data": value.tobytes()}


def _read_n16(raw: Mapping[Any, Any]) -> NDArray[Any]:
    """An .npy file of plain numbers; its head is read here, since numpy's reader takes what is announced."""
    data = raw.get("as_npy")
    if set(raw) != {N16, "as_npy"} or not isinstance(data, bytes) or data[:6] != NPY or len(data) < 12:
        raise WireError("An array in the message is not the bytes of an .npy file.")
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    if data[6] not in (1, 2, 3) or end > min(len(data), 4096):
        raise WireError("An array in the message has the head of no .npy file.")
    try:
        head = ast.literal_eval(data[start:end].decode("latin-1"))
        dtype, fortran, shape = head["descr"], head["fortran_order"], head["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise WireError("An array in the message has the head of no .npy file.") from error
    if not isinstance(fortran, bool) or not isinstance(shape, tuple):
        raise WireError("An array in the message has the head of no .npy file.")
    array = read_array(data[end:], dtype, list(shape[::-1] if fortran else shape))
    return array.T if fortran else array


def _read_n17(raw: Mapping[Any, Any]) -> Any:
    if not {N17, b"type", b"data"} <= set(raw) or not set(raw) <= {N17, b"type", b"kind", b"shape", b"data"}:
        raise WireError(f"An array in the message has the keys {sorted(map(str, raw))[:8]}.")
    if raw.get(b"kind", b"") not in (b"", "") or not isinstance(raw[N17], bool):
        raise WireError("An array in the message is of a kind that does not travel; booleans, integers and floats do.")
    if not raw[N17]:
        return read_array(raw[b"data"], raw[b"type"], [])[()]
    return read_array(raw[b"data"], raw[b"type"], raw.get(b"shape"))


def _parts(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Video, state and language of a nested or a flat observation."""
    parts: dict[str, dict[str, Any]] = {"video": {}, "state": {}, "language": {}}
    for key, value in raw.items():
        kind, dot, name = key.partition(".")
        if key in parts:
            if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
                raise InvalidObservation(f"'{key}' of an observation is a map from names to values.")
            found = value
        elif key in TASK_KEYS:
            kind, found = "language", {key: value}
        elif dot and kind in parts:
            found = {name: value}
        else:
            raise InvalidObservation(
                f"An observation has 'video', 'state' and 'language', or 'video.CAMERA', 'state.GROUP' and "
                f"'{LANGUAGE}', not '{key[:80]}'."
            )
        kind = key if key in parts else kind
        twice = sorted(set(found) & set(parts[kind]))
        if twice:
            raise InvalidObservation(f"'{twice[0][:80]}' of '{kind}' was sent twice.")
        parts[kind] |= found
    return parts["video"], parts["state"], parts["language"]


def _require_known(found: Mapping[str, Any], known: tuple[str, ...], kind: str, robot: Embodiment) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise InvalidObservation(
            f"'{robot.name}' has no {kind} {[k[:80] for k in unknown[:8]]}; it has {list(known)}. The names are those "
            "of the robot's TOML."
        )


def _texts(language: Mapping[str, Any]) -> list[Any]:
    """The instruction of every batch entry: from lists of lists of texts, lists of texts, or one text."""
    if len(language) != 1:
        raise InvalidObservation(f"An observation has one instruction, such as '{LANGUAGE}'; this has {len(language)}.")
    value = next(iter(language.values()))
    entries = value if isinstance(value, list) else [value]
    texts = [entry[-1] if isinstance(entry, list) and entry else entry for entry in entries]
    if not 1 <= len(texts) <= MAX_BATCH:
        raise InvalidObservation(f"A request has 1 to {MAX_BATCH} observations, this has {len(texts)}.")
    return texts


def _batch(value: Any, kind: str, name: str, count: int, dimensions: int) -> NDArray[Any]:
    shape = "[B, T, height, width, 3]" if dimensions == 5 else "[B, T, D]"
    if not isinstance(value, np.ndarray) or value.ndim != dimensions or 0 in value.shape:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        if isinstance(value, dict):
            found += (
                f" {sorted(map(str, value))[:6]}; arrays come as maps with '{N16}' and 'as_npy' (N1.6) or with the "
            )
            found += "bytes keys 'nd', 'type', 'shape' and 'data' (N1.7)"
        raise InvalidObservation(f"'{kind}.{name}' must be an array {shape}, it is {found}.")
    if len(value) != count:
        raise InvalidObservation(f"'{kind}.{name}' has {len(value)} observations, the instructions are {count}.")
    return value


def _whole_state(groups: Mapping[str, NDArray[Any]], entry: int, robot: Embodiment) -> Array:
    state = np.empty(robot.state_dim)
    for group, names in robot.state_groups.items():
        values = groups[group][entry, -1]
        if values.dtype.kind not in "fiu" or len(values) != len(names):
            raise InvalidObservation(
                f"'state.{group}' must be {len(names)} values of {list(names)}, it is {values.dtype} with "
                f"{len(values)}."
            )
        state[robot.state_columns.places(names)] = values
    return state
