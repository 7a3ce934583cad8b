"""Drive a robot with a policy: adapter, safety filter, control loop, black box and the keys to stop it, in one command.

Knows the parts and what a person has to be told; what moves the robot is the control loop.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from athena_vla.control.black_box import BlackBox
from athena_vla.control.runtime import Actor, Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.shadow import ShadowReport
from athena_vla.control.teleoperator import SOURCES, Teleoperator
from athena_vla.control.trace import Trace
from athena_vla.drive.adapters import open_robot
from athena_vla.drive.hands import HELP, keys, remote
from athena_vla.drive.keeping import SUCCESS, Verdict, keep, require_room, verdict
from athena_vla.drive.keyboard import KEYS
from athena_vla.drive.plain_parts import HOLD, Hold, Told
from athena_vla.drive.teleoperators import Pressable, open_teleoperator
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, SafetyError
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.serve_config import TOKEN_VARIABLE


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """Drive a robot with a policy, in real time, until `--duration` is over, `q` or Ctrl-C."""

    robot: str = "sim"
    """Name of a robot adapter (`sim`, or one of an installed package), or MODULE:CLASS of a file in this folder."""
    option: tuple[str, ...] = ()
    """Options of the adapter, as NAME=VALUE."""
    policy: str = HOLD
    """Address of a policy server (ws://HOST:PORT), folder of a bundle, or `hold`: no policy, the pose is kept."""
    task: str = ""
    """Instruction; empty takes the robot's own."""
    duration: float = 60.0
    """The robot is driven for so long at most, then comes to rest. [s]"""
    speed: float = 1.0
    """Share of the velocity limits, and of the plan's own speed, from 0.1 to 1; for bring-up."""
    groups: tuple[str, ...] = ()
    """Groups of joints that may move; the others hold their pose. Empty: all."""
    replan_every: int = 8
    """Ask for a new chunk every this many control steps."""
    timeout: float = 1.0
    """A question without an answer is given up after this long. [s]"""
    max_observation_age: float = 0.5
    """An observation older than this, by its own stamp, is none. [s]"""
    jerk: bool = False
    """Keep the limits on jerk too."""
    margin: float = 0.0
    """[rad] that the position limits are moved inwards by."""
    ramp_in: bool = False
    """Move a robot that starts outside its limits into them, at a tenth of its speed."""
    latch: bool = True
    """After a fault that ended at rest, wait for an acknowledgement (key `a`)."""
    heartbeat: float | None = None
    """Come to rest unless a key is pressed, or /beat asked, this often. [s]"""
    shadow: bool = False
    """Command nothing; say afterwards what would have been commanded and what the robot did."""
    real_time: bool = True
    """Off: as fast as possible, for robots whose clock is simulated."""
    teleop: str = ""
    """Who can take over: keyboard, ros2, script (the simulator's), one of an installed package, or MODULE:CLASS."""
    teleop_option: tuple[str, ...] = ()
    """Options of the teleoperator, as NAME=VALUE."""
    record: Path | None = None
    """Folder of a recording to which the run is added as an episode, with who commanded each step."""
    success: Verdict = "ask"
    """Whether the run succeeded: `ask` takes the simulator's word, or asks at the terminal; or yes, no, unmarked."""
    black_box: Path | None = Path("runs/black_box")
    """Folder in which the last five minutes are kept, one folder a robot."""
    black_box_mb: float = 300.0
    """The most that the black box may take. [MB]"""
    stop_host: str = "127.0.0.1"
    """Where stops from other machines are taken."""
    stop_port: int | None = None
    """Port for them; they need the token in ATHENA_TOKEN."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.speed <= 1.0:
            raise SafetyError(f"--speed is a share of the limits from 0.1 to 1, not {self.speed}.")
        for flag, pairs in (("--option", self.option), ("--teleop-option", self.teleop_option)):
            for pair in pairs:
                if "=" not in pair:
                    raise SafetyError(f"{flag} takes NAME=VALUE, not '{pair}'.")
        if self.teleop_option and not self.teleop:
            raise SafetyError("--teleop-option says how somebody takes over; name who with --teleop.")
        if self.shadow and (self.teleop or self.record):
            raise SafetyError("A shadow run commands nothing: nobody can take over, and there is nothing to record.")


@dataclass(frozen=True)
class DriveResult:
    """What a run was, in short; the black box has the rest."""

    robot: str
    seconds: float
    commands: int
    ended_by: str
    modified: int
    overruns: int
    interventions: dict[str, int]
    events: tuple[str, ...]
    errors: tuple[str, ...]
    policies: tuple[str, ...]
    black_box: str
    shadow: ShadowReport | None = field(default=None)
    commanded_by: dict[str, int] = field(default_factory=dict)  # commands by policy, human and script
    success: bool | None = None
    episode: str = ""

    def __str__(self) -> str:
        if self.shadow is not None:
            return str(self.shadow)
        lines = [
            f"Drove '{self.robot}' for {self.seconds:.1f} s with {self.commands} commands; ended by {self.ended_by}, "
            f"at rest. The filter changed {self.modified}, {self.overruns} came late."
        ]
        if len(self.commanded_by) > 1:
            each = ", ".join(f"{n} by the {who}" for who, n in self.commanded_by.items())
            lines += [f"  Commands: {each}."]
        lines += [f"  {e}" for e in (*self.events, *self.errors[:10])]
        marked = {True: "success", False: "failure", None: "not marked"}[self.success]
        lines += [f"Episode: {self.episode} ({marked})"] if self.episode else []
        return "\n".join(lines + ([f"Black box: {self.black_box}"] if self.black_box else []))


def drive(config: DriveConfig) -> DriveResult:
    """Raises `SafetyError` before anything moves for whatever does not fit, and what `Runtime.run` raises."""
    with ExitStack() as stack:
        bare = open_robot(config.robot, dict(pair.split("=", 1) for pair in config.option))
        body = bare.embodiment
        stack.enter_context(only_owner(f"{config.robot}-{body.name}"))
        if config.record is not None:
            require_room(body, config.duration, config.record)
        teleoperator = None
        if config.teleop:
            options = dict(pair.split("=", 1) for pair in config.teleop_option)
            teleoperator = open_teleoperator(config.teleop, options, bare, stack, real_time=config.real_time)
        robot = Told(bare, config.task) if config.task else bare
        guard = SafetyFilter(body, jerk=config.jerk, margin=config.margin, speed=config.speed)
        actor = _actor(config, body, stack)
        box = None
        if config.black_box is not None:
            folder = config.black_box / body.name
            box = stack.enter_context(BlackBox(folder, body, most_bytes=round(config.black_box_mb * 1e6)))
        runtime = Runtime(robot, actor, guard, _settings(config), recorder=box, teleoperator=teleoperator)
        try:
            trace = _run(config, runtime, body, teleoperator)
        except BaseException:
            _keep_what_there_is(config, runtime.trace, body)
            raise
        success, says = None, ""
        if config.record is not None or config.teleop:
            success, says = verdict(bare, config.success)
        if box is not None and success is not None:
            box.noted(robot.time, SUCCESS, f"{'yes' if success else 'no'}: {says}")
    episode = "" if config.record is None else str(keep(trace, body, config.record, success))
    result = _result(trace, str(config.black_box / body.name) if config.black_box is not None else "")
    return replace(result, success=success, episode=episode)


def _run(config: DriveConfig, runtime: Runtime, body: Embodiment, teleoperator: Teleoperator | None) -> Trace:
    """The run itself, with the ways in which a person reaches it."""
    quit_asked: list[bool] = []
    calls = {
        "stop": lambda: runtime.stop("the operator"),
        "acknowledge": runtime.acknowledge,
        "beat": runtime.beat,
        "quit": lambda: quit_asked.append(True),
    }
    press = teleoperator.press if isinstance(teleoperator, Pressable) else None
    with ExitStack() as stack:
        at_terminal = stack.enter_context(keys(calls, press))
        if press is not None and not at_terminal:
            raise SafetyError(f"--teleop {config.teleop} takes its keys from a terminal, and there is none.")
        _say(config, body, at_terminal)
        if press is not None:
            print(KEYS, flush=True)
        if config.stop_port is not None:
            token = os.environ.get(TOKEN_VARIABLE, "")
            waiting = runtime.operator
            address = stack.enter_context(
                remote(calls, config.stop_host, config.stop_port, token, lambda: waiting.waiting_for or "running")
            )
            print(f"Stops are taken at {address}/stop.", flush=True)
        return runtime.run(config.duration, until=lambda: bool(quit_asked), real_time=config.real_time)


def _keep_what_there_is(config: DriveConfig, trace: Trace | None, body: Embodiment) -> None:
    """A run that ended in an exception is kept too, without a mark."""
    if config.record is None or trace is None or not trace.frames:
        return
    try:
        print(f"Kept up to the end: {keep(trace, body, config.record, None)}", flush=True)
    except (AthenaError, OSError) as error:
        print(f"The run could not be kept: {error}", flush=True)


def _settings(config: DriveConfig) -> RuntimeConfig:
    return RuntimeConfig(
        replan_every=config.replan_every,
        max_observation_age=config.max_observation_age,
        groups=config.groups,
        timeout=config.timeout,
        ramp_in=config.ramp_in,
        latch=config.latch,
        heartbeat=config.heartbeat,
        shadow=config.shadow,
        raise_errors=False,
        record_images=config.record is not None,
        keep=300.0 if config.record is None else max(300.0, config.duration + 60.0),
    )


def _actor(config: DriveConfig, body: Embodiment, stack: ExitStack) -> Actor:
    if config.policy == HOLD:
        return Hold(body)
    if config.policy.startswith(("ws://", "wss://")):
        remote_policy = stack.enter_context(RemotePolicy(config.policy, body, timeout=config.timeout))
        remote_policy.connect()  # a server that is not there, or is another robot's, is a sentence and not a run
        return remote_policy
    from athena_vla.serve import open_policy

    policy, _ = open_policy(config.policy)
    if policy.robot.hash != body.hash:
        raise SafetyError(f"The policy '{config.policy}' is for '{policy.robot.name}', the robot is '{body.name}'.")
    return policy


def _say(config: DriveConfig, body: Embodiment, at_terminal: bool) -> None:
    """What a person must know before it moves."""
    moving = [g for g in body.groups if g in (config.groups or tuple(body.groups))]
    what = "Nothing is commanded (shadow)" if config.shadow else f"At {config.speed:.0%} of its speed"
    print(
        f"'{body.name}', groups {', '.join(moving)}. {what}. {HELP if at_terminal else 'Ctrl-C: come to rest'}",
        flush=True,
    )
    if body.not_called_safe:
        print(body.not_called_safe, flush=True)
    if not config.latch:
        print("NOT LATCHED: after a fault the robot moves again by itself, as soon as the fault is gone.", flush=True)
    balance = [g for g, names in body.groups.items() if any(body.joint(n).owner == "balance" for n in names)]
    if balance and not config.shadow:
        print(
            f"{', '.join(balance)}: held where they are. A robot that has to balance falls: hang it up, or drive it "
            "from a program of yours with a balance source.",
            flush=True,
        )


@contextmanager
def only_owner(name: str) -> Iterator[None]:
    """One program drives a robot at a time on this machine. Raises `SafetyError` where another one does."""
    folder = Path(tempfile.gettempdir()) / f"athena-vla-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    safe = "".join(c if c.isalnum() else "_" for c in name)
    with open(folder / f"{safe}.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise SafetyError(
                f"'{name}' is being driven by process {file.read().strip() or '?'}. One program at a time."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _result(trace: Trace, box: str) -> DriveResult:
    changed = [k for k, n in sorted(trace.interventions.items()) if n]
    counts = [int((trace.sources == i).sum()) for i in range(len(SOURCES))]
    return DriveResult(
        robot=trace.robot,
        seconds=float(trace.times[-1] - trace.times[0]) if len(trace.times) else 0.0,
        commands=len(trace.commands),
        ended_by=trace.ended_by,
        modified=trace.touched_steps,
        overruns=trace.overruns,
        interventions={k: int(trace.interventions[k]) for k in changed},
        events=tuple(f"{e.time:8.2f} s  {e.kind}: {e.words}" for e in trace.events),
        errors=trace.errors,
        policies=trace.policies,
        black_box=box,
        shadow=ShadowReport.of(trace) if trace.shadow else None,
        commanded_by={who: n for who, n in zip(SOURCES, counts, strict=True) if n},
    )
