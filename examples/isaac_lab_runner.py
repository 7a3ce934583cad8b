"""Evaluate a served policy in Isaac Lab. Copy this file beside your script; it needs numpy and websockets.

    from isaac_lab_runner import Runner

    runner = Runner(
        env, "ws://127.0.0.1:8000", "results/mine.jsonl", policy="mine", instruction="put the cube into the bin",
        cameras={"head": "front"}, robot_file="my_robot.toml", success="success", scale=0.5, offset="default",
    )
    runner.run(range(50))              # one episode a scene; scene 7 is env.reset(seed=7)

    athena compare --results results/base.jsonl results/mine.jsonl

An episode ends when the task succeeds, the environment ends it, or its time is over; one JSON line each is on the disk
before the next begins. Run again to go on: scenes that are in the file are skipped. A server that fails ends the run in
a sentence and not in a failed episode. Environment 0 is evaluated.

Joint targets go through the safety filter of the robot where athena-vla is installed beside Isaac Lab
(`pip install athena-vla`; of it the filter needs numpy only). Without it, say `filtered=False`: targets then go to the
simulator as the policy gave them, the results say so, and `athena compare` refuses to mix the two.

Tested with a stand-in that has the attributes used here; never run inside Isaac Lab.
"""

import json
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

MAX_ANSWER = 16 * 1024 * 1024  # bytes


class Runner:
    """One environment, one served policy, one file of results. Raises `ValueError` for what does not fit together."""

    def __init__(
        self,
        env: Any,
        address: str,
        out: str | os.PathLike[str],
        *,
        policy: str,
        instruction: str,
        cameras: Mapping[str, str],
        success: str | Callable[[Any], bool],
        robot_file: str | os.PathLike[str] | None = None,
        filtered: bool = True,
        task: str = "",
        robot: str = "robot",
        joints: tuple[str, ...] = (),
        scale: float | np.ndarray = 1.0,
        offset: str | float | np.ndarray = 0.0,
        seconds: float = 10.0,
        replan_every: int = 8,
        token: str | None = None,
        timeout: float = 10.0,
        to_action: Callable[[np.ndarray, Any], Any] | None = None,
    ) -> None:
        """`cameras`: the policy's camera -> the scene's. `success`: a termination term, or a function of `env`.

        `joints` is the order of the action term (default: the robot's own), `scale` and `offset` those of its
        configuration: action = (target - offset) / scale; "default" is the default pose. `replan_every` counts control
        steps of the policy. `to_action` turns actions [N, D] into what `env.step` takes (default: a torch tensor).
        """
        scene = env.unwrapped.scene
        known = list(scene.keys())
        for name in (robot, *cameras.values()):
            if name not in known:
                raise ValueError(f"The scene has no '{name}'; it has {', '.join(known)}.")
        if replan_every < 1 or not seconds > 0:
            raise ValueError(f"replan_every is {replan_every} and seconds {seconds:g}; both must be positive.")
        self.env, self.address, self.out, self.policy, self.task = env, address, Path(out), policy, task
        self.instruction, self.success, self.seconds, self.replan_every = instruction, success, seconds, replan_every
        self.articulation, self.names = scene[robot], list(scene[robot].joint_names)
        self.cameras = {theirs: scene[ours] for theirs, ours in cameras.items()}
        self.step_dt = float(env.unwrapped.step_dt)  # [s]
        self.joints = self._places(joints or tuple(self.names), "the action term")
        self.scale, self.offset = scale, offset
        self.token = os.environ.get("ATHENA_TOKEN", "") if token is None else token
        self.timeout, self._to_action = timeout, to_action or _tensor
        self.body, self.guard = _guard(robot_file, self.step_dt) if filtered else (None, None)
        self.setup = {
            "program": "isaac_lab_runner",
            "instruction": instruction,
            "seconds": float(seconds),
            "step_dt": self.step_dt,
            "replan_every": replan_every,
            "success": success if isinstance(success, str) else getattr(success, "__name__", "a function"),
            "filtered": filtered,
        }

    def run(self, scenes: Iterable[int]) -> Path:
        """Play the scenes that are not in the file yet, and return the file."""
        done = self._open()
        wanted = [int(s) for s in scenes if str(int(s)) not in done]
        if not wanted:
            return self.out
        headers = {"Authorization": f"Api-Key {self.token}"} if self.token else {}
        try:
            with connect(
                self.address,
                additional_headers=headers,
                open_timeout=self.timeout,
                max_size=MAX_ANSWER,
                compression=None,
            ) as connection:
                self.server = unpack(_bytes(connection.recv(timeout=self.timeout)))
                self._check()
                for number, scene in enumerate(wanted, 1):
                    row = self._episode(connection, scene)
                    self._write(row)
                    print(
                        f"{number}/{len(wanted)} scene {scene}: {'success' if row['success'] else 'failure'}",
                        flush=True,
                    )
        except (OSError, WebSocketException) as problem:  # a TimeoutError is an OSError
            raise RuntimeError(f"No answer of the server {self.address}: {problem}. Run again to go on.") from None
        return self.out

    def _episode(self, connection: Any, scene: int) -> dict[str, Any]:
        began, asking = time.perf_counter(), 0.0
        self.env.reset(seed=scene)
        order = self.command_places
        target = _numbers(self.articulation.data.joint_pos)[order].astype(np.float64)  # [C] the pose it begins in
        before = None
        if self.guard is not None:
            before = self.guard.touched_steps, dict(self.guard.interventions)
            self.guard.reset(target, 0.0)
            target = self.guard.position
        rows, chunk_at, asked_at = target[None], 0.0, -1e9  # of the present chunk, from its observation on
        dt, every = float(self.server["dt"]), self.replan_every * float(self.server["dt"])
        succeeded, took = False, None
        steps = max(1, round(self.seconds / self.step_dt))
        count = 0
        for count in range(1, steps + 1):
            now = (count - 1) * self.step_dt
            if now - asked_at >= every - 1e-9:
                started = time.perf_counter()
                answer = self._ask(connection, now)
                asking += time.perf_counter() - started
                rows = np.repeat(target[None], len(answer) + 1, axis=0)
                rows[1:, self.action_columns] = answer
                chunk_at = asked_at = now
            place = min((now + self.step_dt - chunk_at) / dt, len(rows) - 1.0)
            low = min(int(place + 1e-9), len(rows) - 2)
            wish = rows[low] + (place - low) * (rows[low + 1] - rows[low])
            target = wish if self.guard is None else self.guard.step(wish, now)
            result = self.env.step(self._action(target))
            ended = any(bool(np.any(_numbers(flag, first=False)[:1])) for flag in result[2:4])
            succeeded = self._succeeded(ended)
            if succeeded:
                took = count * self.step_dt
            if succeeded or ended:
                break
        row: dict[str, Any] = {
            "policy": self.policy,
            "scene": scene,
            "task": self.task,
            "instruction": self.instruction,
            "success": succeeded,
            "time_to_success": took,
            "commands": count,
            "wall": {"total": time.perf_counter() - began, "acting": asking},
        }
        if self.guard is not None and before is not None:
            row["touched"] = int(self.guard.touched_steps - before[0])
            more = {k: int(n - before[1].get(k, 0)) for k, n in self.guard.interventions.items()}
            row["interventions"] = {k: n for k, n in more.items() if n}
        return row

    def _ask(self, connection: Any, now: float) -> np.ndarray:
        """The policy's chunk [H, D] for what is seen now; [rad]."""
        state = _numbers(self.articulation.data.joint_pos)[self.state_places].astype(np.float64)
        question = {f"observation/{name}": _pixels(camera.data.output["rgb"]) for name, camera in self.cameras.items()}
        connection.send(pack({**question, "observation/state": state, "prompt": self.instruction, "time": float(now)}))
        answer = unpack(_bytes(connection.recv(timeout=self.timeout)))
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != len(self.action_columns):
            raise RuntimeError(f"The policy server {self.address} answered without a chunk of actions.")
        if not np.isfinite(actions).all():
            raise RuntimeError(f"The policy server {self.address} answered with numbers that are not finite.")
        return actions.astype(np.float64)

    def _action(self, target: np.ndarray) -> Any:
        whole = _numbers(self.articulation.data.joint_pos_target).astype(np.float64)
        whole[self.command_places] = target
        offset = self.offset
        if isinstance(offset, str):
            offset = _numbers(self.articulation.data.default_joint_pos)[self.joints]
        one = (whole[self.joints] - offset) / self.scale
        count = int(getattr(self.env.unwrapped, "num_envs", 1))
        return self._to_action(np.repeat(one[None], count, axis=0), self.env)

    def _succeeded(self, ended: bool) -> bool:
        """A term is looked at only in the step that ended the episode: Isaac Lab keeps older values of terms."""
        if not isinstance(self.success, str):
            return False if ended else bool(self.success(self.env))
        if not ended:
            return False
        return bool(_numbers(self.env.unwrapped.termination_manager.get_term(self.success), first=False)[0])

    def _check(self) -> None:
        """What the server says of itself must fit the scene, and the robot's file."""
        server = self.server
        missing = sorted({"action_names", "state_names", "cameras", "dt"} - set(server))
        if missing:
            raise RuntimeError(f"{self.address} is no server of athena: its metadata lacks {', '.join(missing)}.")
        blind = [c for c in server["cameras"] if c not in self.cameras]
        if blind or len(self.cameras) > len(server["cameras"]):
            raise ValueError(f"The policy sees {server['cameras']}; cameras= names {list(self.cameras)}.")
        self.state_places = self._places(tuple(server["state_names"]), "the policy's state")
        if self.body is not None and server.get("embodiment_hash") != self.body.hash:
            raise ValueError(
                f"The policy drives '{server.get('robot')}', the filter's file describes '{self.body.name}' or another "
                "version of it. Give the file that the data set was built with."
            )
        commanded = tuple(server["action_names"]) if self.body is None else tuple(self.body.command_names)
        self.command_places = self._places(commanded, "the robot's file" if self.body is not None else "the policy")
        place = {n: i for i, n in enumerate(commanded)}
        self.action_columns = np.array([place[n] for n in server["action_names"]])

    def _places(self, names: tuple[str, ...], whose: str) -> np.ndarray:
        missing = [n for n in names if n not in self.names]
        if missing:
            raise ValueError(f"{whose} names joints that the scene's robot lacks: {', '.join(missing[:5])}.")
        return np.array([self.names.index(n) for n in names])

    def _open(self) -> set[str]:
        """Begin the file, or go on with it; the scenes of this policy that it has."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        text = self.out.read_bytes() if self.out.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]  # a line that a crash cut off is dropped, and its scene played again
        if whole != text:
            with self.out.open("r+b") as file:
                file.truncate(len(whole))
        lines = [json.loads(line) for line in whole.splitlines() if line.strip()]
        if not lines:
            self._write({"setup": self.setup})
            return set()
        if lines[0].get("setup") != self.setup:
            raise ValueError(
                f"'{self.out}' was made with {lines[0].get('setup')}, not {self.setup}. Give another file."
            )
        return {str(row["scene"]) for row in lines[1:] if row.get("policy") == self.policy}

    def _write(self, row: dict[str, Any]) -> None:
        with self.out.open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _guard(robot_file: str | os.PathLike[str] | None, step_dt: float) -> tuple[Any, Any]:
    if robot_file is None:
        raise ValueError("The safety filter needs the robot's file: robot_file=... Without a filter: filtered=False.")
    try:
        from athena_vla.control.safety import SafetyFilter
        from athena_vla.embodiment import load
    except ImportError as problem:
        raise ValueError(f"No safety filter here ({problem}): pip install athena-vla, or say filtered=False.") from None
    body = load(os.fspath(robot_file))
    return body, SafetyFilter(body, rate_hz=1.0 / step_dt)


def _tensor(actions: np.ndarray, env: Any) -> Any:
    import torch

    return torch.as_tensor(actions, dtype=torch.float32, device=env.unwrapped.device)


def _numbers(values: Any, *, first: bool = True) -> np.ndarray:
    """Environment 0 of a tensor `[N, ...]` on any device, as numpy; newer versions wrap tensors in `.torch`."""
    values = getattr(values, "torch", values)
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return np.array(array[0] if first else array)


def _pixels(values: Any) -> np.ndarray:
    """uint8 `[H, W, 3]` of a camera's `rgb` output, which may have an alpha channel or be normalised."""
    image = _numbers(values)[..., :3]
    return image if image.dtype == np.uint8 else np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)


def _bytes(answer: str | bytes) -> bytes:
    """A text frame is the server's complaint."""
    if isinstance(answer, bytes):
        return answer
    try:
        fault = json.loads(answer)["error"]
        raise RuntimeError(f"The policy server refused: {fault['type']}: {fault['message']}")
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"The policy server refused: {answer[:300]}") from None


def pack(value: Any) -> bytes:
    """msgpack, as far as openpi's messages need it; arrays as maps with `__ndarray__`."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return pack(
            {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": list(array.shape)}
        )
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        return struct.pack(">BI", 0xDB, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, list | tuple):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        return struct.pack(">BI", 0xDF, len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())
    raise TypeError(f"values of type {type(value).__name__} have no place in a message")


def unpack(data: bytes) -> Any:
    """Inverse of `pack`, for every head of msgpack but extensions. Raises `RuntimeError` for what is none."""
    try:
        value, end = _value(data, 0)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, ValueError, KeyError) as problem:
        raise RuntimeError(f"{len(data)} bytes of the server are no msgpack message: {problem}.") from None
    if end != len(data):
        raise RuntimeError("The server sent more than one message in a frame.")
    return value


_FIXED = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i"}
_FIXED[0xD3] = ">q"
_SIZED = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}
_SIZED |= {0xDE: ">H", 0xDF: ">I"}


def _value(data: bytes, at: int) -> tuple[Any, int]:
    head, at = data[at], at + 1
    if head < 0x80 or head >= 0xE0:
        return (head if head < 0x80 else head - 256), at
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    if head in _FIXED:
        (number,) = struct.unpack_from(_FIXED[head], data, at)
        return number, at + struct.calcsize(_FIXED[head])
    if head < 0xC0:
        size, kind = (head & 31, "text") if head >= 0xA0 else (head & 15, "list" if head >= 0x90 else "map")
    else:
        (size,) = struct.unpack_from(_SIZED[head], data, at)
        at += struct.calcsize(_SIZED[head])
        kind = "bytes" if head <= 0xC6 else "text" if head <= 0xDB else "list" if head <= 0xDD else "map"
    if kind in ("text", "bytes"):
        piece = data[at : at + size]
        if len(piece) != size:
            raise ValueError("it is cut off")
        return (piece.decode() if kind == "text" else piece), at + size
    items = []
    for _ in range(size * (2 if kind == "map" else 1)):
        item, at = _value(data, at)
        items.append(item)
    if kind == "list":
        return items, at
    found = dict(zip(items[::2], items[1::2], strict=True))
    if b"__ndarray__" in found:
        dtype = np.dtype(found[b"dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of type {dtype}")
        return np.frombuffer(found[b"data"], dtype=dtype).reshape(found[b"shape"]), at
    if b"__npgeneric__" in found:
        return found[b"data"], at
    return found, at
