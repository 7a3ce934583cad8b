"""The script that evaluates a served policy in Isaac Lab, with a stand-in of the attributes that it uses."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest

from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.evaluate.outcomes import compare_results, read_outcomes
from athena_vla.wire import codec
from athena_vla.wire.server import PolicyServer, background
from test_isaac_lab_recorder import OnDevice

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "isaac_lab_runner.py"
NAMES = ["wheel", "finger", "base", "shoulder"]  # another order than the policy's, and a joint beside it
STEP = 0.02  # [s]
SCALE = 0.5
DEFAULT = np.array([0.0, 0.1, 0.2, 0.3])


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("isaac_lab_runner", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class StandIn:
    """Two environments; joints go where they are told; environment 0 succeeds once its base is beyond a mark."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.position = np.tile(DEFAULT, (2, 1))
        self.seed, self.steps, self.targets, self.fails_at = -1, 0, [], fails_at
        self.data = SimpleNamespace(default_joint_pos=OnDevice(np.tile(DEFAULT, (2, 1))))
        pixels = OnDevice(np.zeros((2, 48, 64, 4), np.uint8))
        self.camera = SimpleNamespace(data=SimpleNamespace(output={"rgb": pixels}))
        scene = {"robot": SimpleNamespace(joint_names=NAMES, data=self.data), "front_camera": self.camera}
        self.success = np.array([True, False])  # stale, as Isaac Lab leaves it after an earlier episode
        manager = SimpleNamespace(get_term=lambda name: {"success": OnDevice(self.success)}[name])
        self.unwrapped = SimpleNamespace(
            scene=scene, step_dt=STEP, num_envs=2, termination_manager=manager, device="cpu"
        )
        self._show()

    def reset(self, seed: int) -> None:
        self.seed, self.steps = seed, 0
        self.position = np.tile(DEFAULT, (2, 1))
        self._show()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        assert action.shape == (2, 4)
        self.position = DEFAULT + SCALE * np.asarray(action, np.float64)
        self.targets.append(self.position[0].copy())
        self.steps += 1
        reached = self.position[0, 2] > 0.5 + 0.1 * (self.seed % 2)
        fallen = self.steps == self.fails_at
        if reached or fallen:
            self.success = np.array([reached, False])
        self._show()
        return {}, np.zeros(2), OnDevice(np.array([reached or fallen, False])), OnDevice(np.array([False, True])), {}

    def _show(self) -> None:
        self.data.joint_pos = self.data.joint_pos_target = OnDevice(self.position)


class Pushes:
    """Moves the base onwards from where it is; the other joints stay."""

    def __init__(self, body: Embodiment, speed: float) -> None:
        self._body, self._speed, self.seen = body, speed, []

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        rows = np.repeat(observation.state[None], 8, axis=0)
        rows[:, 0] += self._speed / self._body.control_hz * np.arange(1, 9)
        return ActionChunk(
            rows.astype(np.float64), self._body.action_joints, 1 / self._body.control_hz, observation.time
        )


def runner(script: Any, env: StandIn, address: str, out: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "policy": out.stem,
        "instruction": "push",
        "cameras": {"front": "front_camera"},
        "robot_file": "toy",
        "success": "success",
        "scale": SCALE,
        "offset": "default",
        "seconds": 1.5,
        "replan_every": 2,
        "to_action": lambda actions, env: actions,
    }
    return script.Runner(env, address, out, **settings | changes)


def test_episodes_of_two_policies_are_compared(script: Any, toy: Embodiment, tmp_path: Path) -> None:
    fast, slow = Pushes(toy, 0.4), Pushes(toy, 0.1)
    files = []
    for name, policy in (("fast", fast), ("slow", slow)):
        with background(PolicyServer(policy, toy)) as server:
            env = StandIn()
            files.append(runner(script, env, server.address, tmp_path / f"{name}.jsonl").run(range(4)))
    first = fast.seen[0]
    np.testing.assert_allclose(first.state, [0.2, 0.3, 0.1])  # by name, in the policy's order
    assert (first.instruction, first.images["front"].shape) == ("push", (48, 64, 3))
    fast_rows, slow_rows = (read_outcomes(f).outcomes for f in files)
    assert [o.success for o in fast_rows] == [True] * 4
    assert [o.success for o in slow_rows] == [False] * 4  # also where a stale term says something else
    # 0.3 rad, or 0.4 rad in odd scenes, at 0.4 rad/s, a start from rest within 10 rad/s^2 and a step beyond the mark
    assert fast_rows[0].time_to_success == pytest.approx(0.75, abs=0.12)
    assert fast_rows[1].time_to_success == pytest.approx(1.0, abs=0.12)
    table = compare_results(files)
    assert table.versus["fast"].paired is not None
    assert table.versus["fast"].paired.only_second == 4
    assert not any("unread" in n or "not read" in n for n in table.notes)


def test_targets_pass_the_filter_and_reach_the_right_joints(script: Any, toy: Embodiment, tmp_path: Path) -> None:
    env = StandIn()
    with background(PolicyServer(Pushes(toy, 50.0), toy)) as server:
        runner(script, env, server.address, tmp_path / "wild.jsonl", seconds=0.3).run([0])
    commands = np.array(env.targets)[:, [2, 3, 1]]
    start = np.array([0.2, 0.3, 0.1])
    velocity = np.diff(np.concatenate([start[None], start[None], commands]), axis=0) / STEP
    tight = 1.0 + 1e-6  # the action's way to the environment and back rounds
    assert (np.abs(velocity) <= toy.max_velocity * tight).all()
    assert (np.abs(np.diff(velocity, axis=0)) / STEP <= toy.max_acceleration * tight).all()
    assert ((commands >= toy.lower - 1e-9) & (commands <= toy.upper + 1e-9)).all()
    assert np.ptp(np.array(env.targets)[:, 0]) == 0.0  # the joint that is not the policy's
    row = json.loads((tmp_path / "wild.jsonl").read_text().splitlines()[1])
    assert row["touched"] > 0
    env = StandIn()
    with background(PolicyServer(Pushes(toy, 50.0), toy)) as server:
        runner(script, env, server.address, tmp_path / "bare.jsonl", seconds=0.3, filtered=False, robot_file=None).run(
            [0]
        )
    assert env.targets[0][2] == pytest.approx(0.2 + 50.0 * STEP)  # as the policy gave it
    assert json.loads((tmp_path / "bare.jsonl").read_text().splitlines()[0])["setup"]["filtered"] is False


def test_a_run_goes_on_where_it_was_cut_off(script: Any, toy: Embodiment, tmp_path: Path) -> None:
    out = tmp_path / "mine.jsonl"
    with background(PolicyServer(Pushes(toy, 0.4), toy)) as server:
        runner(script, StandIn(), server.address, out).run(range(2))
        whole = out.read_bytes()
        out.write_bytes(whole[:-9])  # a crash while the last line was written
        env = StandIn()
        runner(script, env, server.address, out).run(range(3))
        assert [o.scene for o in read_outcomes(out).outcomes] == ["0", "1", "2"]
        with pytest.raises(ValueError, match="another file"):
            runner(script, StandIn(), server.address, out, seconds=9.0).run(range(3))


def test_an_episode_that_the_environment_ends_is_a_failure(script: Any, toy: Embodiment, tmp_path: Path) -> None:
    with background(PolicyServer(Pushes(toy, 0.01), toy)) as server:
        runner(script, StandIn(fails_at=5), server.address, tmp_path / "f.jsonl").run([0])
    row = json.loads((tmp_path / "f.jsonl").read_text().splitlines()[1])
    assert (row["success"], row["commands"]) == (False, 5)


def test_success_can_be_a_function(script: Any, toy: Embodiment, tmp_path: Path) -> None:
    def base_is_there(env: Any) -> bool:
        return env.position[0, 2] > 0.25

    with background(PolicyServer(Pushes(toy, 0.4), toy)) as server:
        runner(script, StandIn(), server.address, tmp_path / "f.jsonl", success=base_is_there).run([0])
    assert read_outcomes(tmp_path / "f.jsonl").outcomes[0].success


def test_a_server_that_fails_is_no_failed_episode(script: Any, toy: Embodiment, tmp_path: Path) -> None:
    class Broken(Pushes):
        def act(self, observation: Observation) -> ActionChunk:
            if len(self.seen) > 1:
                raise ZeroDivisionError("secret")
            return super().act(observation)

    with (
        background(PolicyServer(Broken(toy, 0.4), toy)) as server,
        pytest.raises(RuntimeError, match="refused"),
    ):
        runner(script, StandIn(), server.address, tmp_path / "b.jsonl").run([0])
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 1  # the setup alone
    with pytest.raises(RuntimeError, match="No answer of the server"):
        runner(script, StandIn(), "ws://127.0.0.1:9", tmp_path / "c.jsonl").run([0])


def test_what_does_not_fit_is_a_sentence(script: Any, toy: Embodiment, athena: Embodiment, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match="no 'wrist'; it has robot, front_camera"):
        runner(script, StandIn(), "ws://x", out, cameras={"front": "wrist"})
    with pytest.raises(ValueError, match="filtered=False"):
        runner(script, StandIn(), "ws://x", out, robot_file=None)
    with pytest.raises(ValueError, match="action term names joints .*thumb"):
        runner(script, StandIn(), "ws://x", out, joints=("thumb",))
    with background(PolicyServer(Pushes(toy, 0.4), toy)) as server:
        with pytest.raises(ValueError, match=r"sees \['front'\]; cameras= names \['head'\]"):
            runner(script, StandIn(), server.address, out, cameras={"head": "front_camera"}).run([0])
        with pytest.raises(ValueError, match="drives 'toy'"):
            runner(script, StandIn(), server.address, out, robot_file="athena").run([0])


def test_actions_are_tensors_by_default(script: Any) -> None:
    torch = pytest.importorskip("torch")
    made = script._tensor(np.ones((2, 3)), StandIn())
    assert (made.dtype, tuple(made.shape)) == (torch.float32, (2, 3))


@pytest.mark.parametrize("seed", range(20))
def test_messages_are_those_of_the_msgpack_library(script: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    message = {
        "observation/front": rng.integers(0, 256, (3, 4, 3)).astype(np.uint8),
        "observation/state": rng.normal(size=3),
        "prompt": "grüße" * int(rng.integers(0, 90)),
        "numbers": [int(x) for x in rng.integers(-(2**40), 2**40, int(rng.integers(0, 40)))]
        + [0, -1, 127, -33, 255, 65536],
        "nested": {"a": None, "b": True, "c": 0.5, "d": {str(i): i for i in range(int(rng.integers(0, 20)))}},
        "bytes": bytes(int(rng.integers(0, 300))),
    }
    theirs = codec.unpack(script.pack(message))
    ours = script.unpack(codec.pack(message))
    for found in (theirs, ours):
        np.testing.assert_array_equal(found["observation/front"], message["observation/front"])
        np.testing.assert_array_equal(found["observation/state"], message["observation/state"])
        assert {k: found[k] for k in ("prompt", "numbers", "nested", "bytes")} == {
            k: message[k] for k in ("prompt", "numbers", "nested", "bytes")
        }
    data: Any = msgpack.packb({"a": [1, 2.5, "x"]})
    for cut in range(len(data)):
        with pytest.raises(RuntimeError):
            script.unpack(data[:cut])


def test_it_needs_numpy_and_websockets_only() -> None:
    """In a fresh process: what the script imports beyond the standard library."""
    code = (
        "import sys, runpy; before = set(sys.modules); "
        f"runpy.run_path({str(SCRIPT)!r}); "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import site; site.main(); " + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.strip().replace("'", '"'))) <= {"numpy", "websockets"}
