"""GR00T's protocol: both forms of its arrays, nested and flat, over a ZeroMQ socket, and what is refused."""

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla import embodiment
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import ServerError, WireError
from athena_vla.wire import gr00t
from athena_vla.wire.serve_config import ServeConfig
from athena_vla.wire.server import PolicyServer, background

zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")
HORIZON = 6
TOKEN = "a secret of the robot"
TASK = "touch the red cube"


def humanoid() -> Embodiment:
    """The shipped humanoid with its joints in the groups that GR00T's clients speak of, as a robot's TOML has them."""

    def group(name: str, present: str) -> str:
        side = name.split("_")[0]
        return f"{side}_arm" if present == "arms" else {"torso": "waist"}.get(present, present)

    shipped = embodiment.load("athena")
    return replace(shipped, joints=tuple(replace(j, group=group(j.name, j.group)) for j in shipped.joints))


ATHENA = humanoid()


class Telling:
    """Answers with its state, moved by what it sees and is told: a value for everything that arrived."""

    def act(self, observation: Observation) -> ActionChunk:
        offset = observation.images["head"].astype(np.float64).sum() / 1e9 + len(observation.instruction) / 1e3
        rows = observation.state[ATHENA.action_index] + offset + np.arange(HORIZON)[:, None] * 0.01
        return ActionChunk(rows, ATHENA.action_joints, 1 / ATHENA.control_hz)


@pytest.fixture(scope="module", params=["", TOKEN])
def server(request: pytest.FixtureRequest) -> Iterator[PolicyServer]:
    config = ServeConfig(port=0, gr00t_port=0, token=request.param)
    with background(PolicyServer(Telling(), ATHENA, config, metadata={"horizon": HORIZON})) as running:
        yield running


def ask(server: PolicyServer, message: bytes) -> Any:
    context = zmq.Context()
    client = context.socket(zmq.REQ)
    client.setsockopt(zmq.LINGER, 0)
    client.setsockopt(zmq.RCVTIMEO, 5000)
    try:
        client.connect(f"tcp://127.0.0.1:{server.gr00t_port}")
        client.send(message)
        return client.recv()
    finally:
        client.close()
        context.term()


# The two forms, by numpy's own writer and by the published keys of msgpack-numpy.


def npy(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}


def msgpack_numpy(array: np.ndarray) -> dict[bytes, Any]:
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": list(array.shape),
        b"data": array.tobytes(),
    }


WRITE: dict[str, Callable[[np.ndarray], Any]] = {"n1.6": npy, "n1.7": msgpack_numpy}


def read(raw: Any) -> Any:
    """Both forms as their clients read them."""

    def hook(found: dict[Any, Any]) -> Any:
        if "__ndarray_class__" in found:
            return np.load(io.BytesIO(found["as_npy"]), allow_pickle=False)
        if b"nd" in found:
            return np.frombuffer(found[b"data"], np.dtype(found[b"type"])).reshape(found[b"shape"])
        return found

    return msgpack.unpackb(raw, object_hook=hook)


def form_of(raw: bytes) -> set[str]:
    return {form for form, mark in (("n1.6", b"__ndarray_class__"), ("n1.7", b"\xc4\x02nd")) if mark in raw}


def arrays(batch: int = 1, steps: int = 1, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    video = {"head": rng.integers(0, 256, (batch, steps, 24, 32, 3)).astype(np.uint8)}
    state = {}
    for group, names in ATHENA.groups.items():
        places = ATHENA.index(names)
        low, high = ATHENA.lower[places], ATHENA.upper[places]
        state[group] = rng.uniform(low, high, (batch, steps, len(names))).astype("f4")
    return video, state


def request(
    form: str, video: dict[str, np.ndarray], state: dict[str, np.ndarray], *, flat: bool = False, **more: Any
) -> bytes:
    write = WRITE[form]
    batch = len(next(iter(video.values())))
    steps = video["head"].shape[1] if "head" in video else 1
    texts = [[f"{TASK} {n}"] * steps for n in range(batch)]
    if flat:
        observation: dict[str, Any] = {f"video.{k}": write(v) for k, v in video.items()}
        observation |= {f"state.{k}": write(v) for k, v in state.items()}
        observation[gr00t.LANGUAGE] = [t[-1] for t in texts]
    else:
        observation = {
            "video": {k: write(v) for k, v in video.items()},
            "state": {k: write(v) for k, v in state.items()},
            "language": {gr00t.LANGUAGE: texts},
        }
    message = {"endpoint": "get_action", "data": {"observation": observation, "options": None}, "api_token": TOKEN}
    packed = msgpack.packb(message | more)
    assert packed is not None
    return packed


def expected(video: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By joint name, one at a time."""
    groups = {}
    for group, names in ATHENA.groups.items():
        columns = []
        for i, name in enumerate(names):
            if name not in ATHENA.action_joints:
                continue
            for_each = []
            for b in range(len(video["head"])):
                offset = video["head"][b, -1].astype(float).sum() / 1e9 + len(f"{TASK} {b}") / 1e3
                for_each.append(float(state[group][b, -1, i]) + offset + np.arange(HORIZON) * 0.01)
            columns.append(for_each)
        groups[group] = np.array(columns, "f4").transpose(1, 2, 0)
    return groups


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["n1.6", "n1.7"])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (3, 1), (2, 4)])
def test_actions_come_back_in_the_form_of_the_question(
    server: PolicyServer, form: str, flat: bool, batch: int, steps: int
) -> None:
    video, state = arrays(batch, steps)
    raw = ask(server, request(form, video, state, flat=flat))
    assert form_of(raw) == {form}
    action, info = read(raw)
    assert info == {}
    want = expected(video, state)
    assert action.keys() == want.keys()
    for group, values in want.items():
        assert action[group].dtype == np.float32
        assert action[group].shape == (batch, HORIZON, len(ATHENA.groups[group]))
        np.testing.assert_allclose(action[group], values, atol=1e-6)


def test_the_other_endpoints(server: PolicyServer) -> None:
    def simple(endpoint: str, data: Any = None) -> Any:
        packed = msgpack.packb({"endpoint": endpoint, "data": data, "api_token": TOKEN})
        assert packed is not None
        return read(ask(server, packed))

    assert simple("ping")["status"] == "ok"
    assert simple("reset", {"options": None}) == {}
    modalities = simple("get_modality_config")
    assert modalities["video"]["as_json"] == {"delta_indices": [0], "modality_keys": ["head"]}
    assert modalities["state"]["as_json"]["modality_keys"] == list(ATHENA.groups)
    assert modalities["action"]["as_json"]["delta_indices"] == list(range(HORIZON))
    assert modalities["language"]["as_json"]["modality_keys"] == [gr00t.LANGUAGE]
    for config in modalities.values():  # clients of N1.6 and of N1.7 know it by different marks
        assert config["__ModalityConfig_class__"] is True
        assert config["__ModalityConfig__"] is True
    assert "refused" in simple("kill")["error"]
    assert "There is no endpoint 'get_actoin'" in simple("get_actoin")["error"]
    assert simple("ping")["status"] == "ok"  # nobody stopped anything


def test_the_token_is_asked_for_at_every_endpoint() -> None:
    config = ServeConfig(port=0, gr00t_port=0, token=TOKEN)
    video, state = arrays()
    with background(PolicyServer(Telling(), ATHENA, config)) as server:
        for wrong in ("", "another", None, "\U0001f916"):
            for endpoint in (*gr00t.ENDPOINTS, "kill"):
                raw = ask(server, request("n1.7", video, state, endpoint=endpoint, api_token=wrong))
                assert read(raw) == {"error": "Unauthorized: Invalid API token"}


def wrong_questions() -> dict[str, tuple[bytes, str]]:
    video, state = arrays()
    good = request("n1.6", video, state)
    raw = msgpack.unpackb(good)
    mixed = msgpack.unpackb(good)
    mixed["data"]["observation"]["state"]["waist"] = msgpack_numpy(state["waist"])
    pickled = msgpack.unpackb(good)
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()]), allow_pickle=True)
    pickled["data"]["observation"]["state"]["waist"] = {"__ndarray_class__": True, "as_npy": buffer.getvalue()}
    openpi = msgpack.unpackb(good)
    openpi["data"]["observation"]["state"]["waist"] = {"__ndarray__": True, "data": b"", "dtype": "<f4", "shape": [0]}

    def packed(message: Any) -> bytes:
        out = msgpack.packb(message)
        assert out is not None
        return out

    def changed(**parts: Any) -> bytes:
        return packed(raw | {"data": {"observation": raw["data"]["observation"] | parts, "options": None}})

    bare = {"endpoint": "get_action", "api_token": TOKEN}
    return {
        "half a message": (good[: len(good) // 2], "not a msgpack message"),
        "nothing": (b"", "not a msgpack message"),
        "no map": (packed([1, 2]), "A request is a map"),
        "unknown keys": (packed(raw | {"pickle": 1}), "not \\['pickle'\\]"),
        "two forms at once": (packed(mixed), "two forms"),
        "a pickle": (packed(pickled), "type"),
        "another form": (packed(openpi), "N1.6.*N1.7"),
        "no observation": (packed(bare), "takes 'observation'"),
        "options": (packed(raw | {"data": raw["data"] | {"options": {"seed": 1}}}), "no 'options'"),
        "no state": (changed(state={}), "needs the state of groups"),
        "an unknown group": (request("n1.7", video, state | {"tail": state["waist"]}), "no state \\['tail'\\].*TOML"),
        "an unknown camera": (request("n1.7", {"wrist": video["head"]}, state), "no video \\['wrist'\\]"),
        "no picture": (changed(video={}), "needs cameras"),
        "a short group": (
            request("n1.6", video, state | {"waist": state["legs"]}),
            "'state.waist' must be 3 values of",
        ),
        "no batch": (
            request("n1.6", video, state | {"waist": state["waist"][0]}),
            r"\[B, T, D\], it is float32 \[1, 3\]",
        ),
        "batches that differ": (request("n1.6", video, state | {"waist": np.tile(state["waist"], (2, 1, 1))}), "2 obs"),
        "text": (changed(language={gr00t.LANGUAGE: [[3]]}), "instruction in words"),
        "two instructions": (changed(language={"task": [["a"]], gr00t.LANGUAGE: [["b"]]}), "one instruction"),
        "nonsense beside it": (changed(audio={}), "not 'audio'"),
        "twice": (changed(**{"video.head": npy(video["head"])}), "sent twice"),
        "degrees": (request("n1.6", video, {g: np.degrees(v) for g, v in state.items()}), "degrees"),
        "not a number": (request("n1.6", video, {g: v * np.nan for g, v in state.items()}), "not a number"),
        "a thin picture": (request("n1.7", {"head": np.zeros((1, 1, 1, 9000, 3), np.uint8)}, state), "pixels"),
        "millions of values": (packed(bare | {"data": {"observation": [0] * 100_000}}), "more than"),
    }


@pytest.mark.parametrize("name", wrong_questions())
def test_wrong_questions_get_a_sentence(server: PolicyServer, name: str) -> None:
    message, sentence = wrong_questions()[name]
    answer = read(ask(server, message))
    assert set(answer) == {"error"}
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(answer["error"])


def test_damaged_requests_never_leave_the_server_without_an_answer(server: PolicyServer) -> None:
    rng = np.random.default_rng(3)
    context = zmq.Context()
    client = context.socket(zmq.REQ)
    client.setsockopt(zmq.RCVTIMEO, 5000)
    client.connect(f"tcp://127.0.0.1:{server.gr00t_port}")
    try:
        for n in range(150):
            message = bytearray(request(["n1.6", "n1.7"][n % 2], *arrays(), flat=n % 3 == 0))
            for place in rng.integers(0, min(len(message), 600), rng.integers(1, 5)):
                message[place] = rng.integers(256)
            client.send(bytes(message[: rng.integers(1, len(message) + 1)] if n % 5 == 0 else message))
            answer = msgpack.unpackb(client.recv(), strict_map_key=False)
            assert isinstance(answer, list) or set(answer) == {"error"} or "status" in answer or answer == {}
    finally:
        client.close(0)
        context.term()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_random_bytes_are_a_request_or_a_wire_error(data: bytes) -> None:
    try:
        call = gr00t.read_call(data)
    except WireError:
        return
    assert isinstance(call.endpoint, str)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["|u1", "<f4", ">f4", "<f8", "<i8", "|b1"])
def test_npy_files_are_read_as_numpy_reads_them(dtype: str, order: Any) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (2, 3, 4)), dtype=dtype, order=order)
    raw = msgpack.packb({"endpoint": "x", "data": {"a": npy(array)}})
    assert raw is not None
    back = gr00t.read_call(raw).data["a"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    again = read(gr00t.packed({"a": np.ascontiguousarray(array)}, "n1.6"))["a"]
    np.testing.assert_array_equal(again, array)


def test_the_bytes_that_public_libraries_made(shared: Path) -> None:
    """Requests and replies written by numpy's npy and by msgpack-numpy, with what is in them."""
    folder = shared / "cases" / "loop" / "gr00t"
    if not folder.is_dir():
        pytest.skip("the recorded requests of both forms are not beside this checkout")
    values = json.loads((folder / "values.json").read_text())
    seen: list[Observation] = []

    class Seeing(Telling):
        def act(self, observation: Observation) -> ActionChunk:
            seen.append(observation)
            return super().act(observation)

    # Their states were drawn, not measured: a robot with room for them.
    robot = replace(ATHENA, joints=tuple(replace(j, lower=-4.0, upper=4.0) for j in ATHENA.joints))
    with background(PolicyServer(Seeing(), robot, ServeConfig(port=0, gr00t_port=0))) as server:
        for form in ("n16", "n17"):
            for kind in ("", "_flat", "_token"):
                raw = ask(server, (folder / f"{form}_request_get_action{kind}.bin").read_bytes())
                assert form_of(raw) == {f"n1.{form[-1]}"}
                assert int(seen[-1].images["head"].sum()) == values["video.head"]["sum"]
                for group, names in ATHENA.groups.items():
                    np.testing.assert_array_equal(
                        seen[-1].state[ATHENA.index(names)].astype("f4"), np.float32(values[f"state.{group}"])
                    )
                assert seen[-1].instruction == TASK
            for endpoint in ("ping", "reset", "get_modality_config", "kill"):
                answer = read(ask(server, (folder / f"{form}_request_{endpoint}.bin").read_bytes()))
                assert ("error" in answer) == (endpoint == "kill")
        theirs = read((folder / "n16_response_get_action.bin").read_bytes())[0]["left_arm"]
        np.testing.assert_array_equal(theirs[0, 0], np.float32(values["action.left_arm.first_row"]))


def test_a_message_that_is_too_large_costs_its_client_the_connection_and_nobody_else(server: PolicyServer) -> None:
    context = zmq.Context()
    client = context.socket(zmq.REQ)
    client.setsockopt(zmq.RCVTIMEO, 500)
    client.connect(f"tcp://127.0.0.1:{server.gr00t_port}")
    client.send(bytes(server.config.max_message + 1))
    with pytest.raises(zmq.Again):
        client.recv()
    client.close(0)
    context.term()
    began = time.monotonic()
    assert "error" in read(ask(server, b"\xc0"))
    assert time.monotonic() - began < 2.0


def test_a_taken_port_is_a_sentence(server: PolicyServer) -> None:
    config = ServeConfig(port=0, gr00t_port=server.gr00t_port)
    with pytest.raises(ServerError, match="for GR00T"), background(PolicyServer(Telling(), ATHENA, config)):
        pass
