"""Imports point one way: each room of the house imports only rooms below it, and no cycle exists."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "athena_vla"

# From the ground up; a module may import from its own room and from rooms listed for it.
SPINE = {"errors", "progress", "machine", "embodiment"}
READING = SPINE | {"recordings"}
LOOKING = READING | {"annotate", "check"}
SETS = LOOKING | {"dataset", "data"}
MODELS = SETS | {
    "models",
    "bundle",
    "backends",
    "tensorrt_engine",
    "engines",
    "policy",
    "streaming",
    "offload",
    "constrained",
}
ROBOT_SIDE = {"control", "wire", "ros2"}
STAGES = {"finetune", "merge", "quantize", "export", "plan", "serve", "serving"}
EVIDENCE = {"evaluate", "bench", "report", "sweep"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "extras": set(),
    "progress": set(),
    "machine": set(),
    "embodiment": {"errors"},
    "recordings": SPINE,
    "annotate": READING,
    "check": READING | {"annotate"},
    "dataset": LOOKING,
    "data": SETS,
    "control": SPINE,
    "wire": SPINE | {"control"},
    "ros2": SPINE | {"control", "wire"},
    "sim": READING | {"control"},
    "models": SETS,
    "bundle": SETS | {"models"},
    "backends": SETS | {"models", "bundle", "tensorrt_engine"},
    "tensorrt_engine": SPINE | {"models"},
    "engines": SETS | {"models", "bundle"},
    "policy": SETS | {"models", "bundle", "backends", "engines"},
    "streaming": SPINE | {"models", "bundle", "policy"},
    "offload": SPINE | {"models", "bundle", "policy"},
    "constrained": SPINE | {"control", "models", "policy"},
    "doctor": SPINE | {"extras"},
    **dict.fromkeys(STAGES, MODELS | ROBOT_SIDE | STAGES),
    **dict.fromkeys(EVIDENCE, MODELS | ROBOT_SIDE | STAGES | EVIDENCE | {"sim"}),
    "demo": MODELS | ROBOT_SIDE | STAGES | EVIDENCE | {"sim", "doctor", "extras"},
    "cli": MODELS | ROBOT_SIDE | STAGES | EVIDENCE | {"sim", "doctor", "extras", "demo"},
}


def modules() -> dict[str, Path]:
    return {".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in sorted(SOURCE.rglob("*.py"))}


def imports(path: Path) -> list[tuple[str, int]]:
    """Names below athena_vla that a file imports, module-level or not, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "athena_vla":
            inside = node.module.removeprefix("athena_vla").lstrip(".")
            found += [(f"{inside}.{a.name}".strip("."), node.lineno) for a in node.names]
        elif isinstance(node, ast.Import):
            found += [
                (a.name.removeprefix("athena_vla."), node.lineno)
                for a in node.names
                if a.name.startswith("athena_vla.")
            ]
    return found


def test_every_room_has_a_rule() -> None:
    rooms = {name.split(".")[0] for name in modules()} - {"__init__"}
    assert rooms <= set(ALLOWED), f"no import rule for {sorted(rooms - set(ALLOWED))}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_one_way(name: str) -> None:
    room = name.split(".")[0]
    if room == "__init__":
        return
    wrong = []
    for target, line in imports(modules()[name]):
        if target == "__version__" or target.split(".")[0] == room:
            continue
        if not any(target == a or target.startswith(f"{a}.") for a in ALLOWED[room]):
            wrong.append(f"{name}:{line} imports {target}")
    assert not wrong, "; ".join(wrong)


def test_torch_only_in_models_and_above() -> None:
    wrong = []
    for name, path in modules().items():
        if name.split(".")[0] not in {*ROBOT_SIDE, *SETS, "sim", "errors", "embodiment", "cli", "doctor"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            wrong += [f"{name}:{node.lineno}" for n in names if n.split(".")[0] == "torch"]  # type: ignore[attr-defined]
    assert not wrong


def test_no_family_is_named_outside_models() -> None:
    families = ("openvla_chunk", "openvla_oft", "OpenVLAChunk", "OpenVLAOFT", "OpenVLA(")
    wrong = []
    for name, path in modules().items():
        if name.split(".")[0] == "models":
            continue
        code = "\n".join(
            line for line in path.read_text().splitlines() if "import" in line or not line.lstrip().startswith("#")
        )
        wrong += [f"{name} names {f}" for f in families if f in code]
    assert not wrong


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    known = modules()
    for name, path in known.items():
        targets = set()
        for node in ast.parse(path.read_text()).body:  # module level only: lazy imports cannot make a cycle
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("athena_vla"):
                inside = (node.module or "").removeprefix("athena_vla").lstrip(".")
                for alias in node.names:
                    for candidate in (f"{inside}.{alias.name}".strip("."), inside, f"{inside}.__init__"):
                        if candidate in known and candidate != name:
                            targets.add(candidate)
                            break
        graph[name] = targets
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"import cycle: {' -> '.join((*trail[trail.index(node) :], node))}"
        if node in done:
            return
        for target in sorted(graph[node]):
            visit(target, (*trail, node))
        done.add(node)

    for name in sorted(graph):
        visit(name, ())


def test_control_needs_only_numpy_and_a_wire_codec() -> None:
    allowed = {"numpy", "msgpack", "websockets", "ruckig", "mujoco", "rclpy", "mcap", "mcap_ros2", "athena_vla"}
    messages = {
        "sensor_msgs",
        "trajectory_msgs",
        "control_msgs",
        "builtin_interfaces",
        "std_msgs",
        "launch",
        "launch_ros",
    }
    wrong = []
    for path in (p for room in sorted(ROBOT_SIDE) for p in sorted((SOURCE / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            tops = {n.split(".")[0] for n in names}
            wrong += [f"{path.name} imports {t}" for t in tops - allowed - messages - set(sys.stdlib_module_names)]
    assert not wrong
