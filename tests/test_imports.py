"""Imports point one way: each room imports only rooms below it. An import inside a function counts too."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "athena_vla"

# From the ground up; a module may import from its own room and from the rooms that its line names.
SPINE = {"errors", "lazy", "extras", "stopping", "progress", "machine", "jobs", "files", "version", "gate"}
SPINE |= {"bags"}
SPINE |= {"robot_parts", "channels", "robot_columns", "embodiment"}
SETS = {"recordings", "annotate", "check", "dataset"}
MODELS = SETS | {"models", "bundle", "bound_base", "engines", "policy", "offload", "constrained"}
ROBOT_SIDE = {"control", "wire", "ros2"}
STAGES = MODELS | {"finetune", "plan", "merge", "quantize", "export"}
EVIDENCE = STAGES | {"control", "sim", "evaluate"}
ALLOWED: dict[str, set[str]] = {
    "errors": {"extras"},
    "version": set(),
    "moved": set(),
    "extras": set(),
    "stopping": set(),
    "progress": {"errors"},
    "machine": {"errors"},
    "files": {"errors"},
    "jobs": {"errors", "progress"},
    "bags": set(),
    "robot_parts": set(),
    "channels": {"robot_parts"},
    "robot_columns": {"robot_parts", "channels"},
    "embodiment": {"errors", "robot_parts", "channels", "robot_columns"},
    "robot_import": set(),
    "recordings": set(),
    "annotate": {"recordings"},
    "check": {"recordings", "annotate"},
    "dataset": {"recordings", "annotate", "check"},
    "models": SETS,
    "bundle": SETS | {"models", "manifest"},
    "gate": {"errors"},
    "manifest": {"errors", "gate"},
    "engines": SETS | {"models", "bundle"},
    "policy": SETS | {"models", "bundle", "engines"},
    "bound_base": SETS | {"models", "bundle", "policy"},
    "offload": {"models", "bundle", "engines", "policy"},
    "constrained": {"control", "models", "policy"},
    "control": set(),
    "wire": {"control"},
    "ros2": {"control", "wire"},
    "sim": {"recordings", "control"},
    "finetune": MODELS,
    "plan": MODELS | {"finetune"},
    "merge": MODELS | {"finetune"},
    "quantize": MODELS,
    "export": MODELS | {"plan", "quantize"},
    "serve": MODELS | {"wire"},
    "view": MODELS,
    "hub": MODELS | {"finetune", "manifest"},
    "evaluate": STAGES | {"control", "sim"},
    "bench": EVIDENCE,
    "sweep": EVIDENCE,
    "lazy": set(),
    "report": EVIDENCE,
    "doctor": set(),
    "drive": MODELS | {"control", "wire", "sim", "serve"},
    "trials": {"evaluate", "drive"},
    "improve": EVIDENCE,
    "incident": {"recordings", "control", "wire", "ros2", "sim"},
    "demo": EVIDENCE | ROBOT_SIDE | {"serve", "bench", "sweep", "report"},
    "cli": EVIDENCE
    | ROBOT_SIDE
    | {
        "serve",
        "hub",
        "view",
        "bench",
        "sweep",
        "report",
        "demo",
        "improve",
        "drive",
        "trials",
        "incident",
        "doctor",
        "extras",
    },
}
OWN_RULE = {
    "errors",
    "gate",
    "lazy",
    "manifest",
    "stopping",
    "version",
    "moved",
    "extras",
    "progress",
    "machine",
    "files",
    "jobs",
}
OWN_RULE |= {"robot_parts", "channels", "robot_columns", "embodiment"}
WITHOUT_TORCH = (SPINE | SETS | ROBOT_SIDE | {"sim", "cli", "doctor", "extras", "moved"}) - {"machine"}
LARGEST_ROOM = 0.2  # share of all lines
MOST_FILES = 25  # in one folder


def modules() -> dict[str, Path]:
    """Dotted names below athena_vla; a package goes by its folder's name, the root by ''."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(name: str) -> str:
    return name.split(".")[0]


def imports(path: Path) -> list[tuple[str, int]]:
    """(module below athena_vla, line) of every import of a file, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "athena_vla":
            inside = (node.module or "").removeprefix("athena_vla").lstrip(".")
            for alias in node.names:
                whole = f"{inside}.{alias.name}".strip(".")
                found.append((whole if whole in MODULES else inside, node.lineno))
        elif isinstance(node, ast.Import):
            found += [
                (a.name.removeprefix("athena_vla").lstrip("."), node.lineno)
                for a in node.names
                if a.name.split(".")[0] == "athena_vla"
            ]
    return found


GRAPH = {name: {t for t, _ in imports(path) if t != name} for name, path in MODULES.items()}


def test_every_room_has_a_rule() -> None:
    rooms = {room(name) for name in MODULES} - {""}
    assert rooms <= set(ALLOWED), f"no import rule for {sorted(rooms - set(ALLOWED))}"


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_imports_point_one_way(name: str) -> None:
    own = room(name)
    allowed = ALLOWED[own] | {own} | (set() if own in OWN_RULE else SPINE)
    wrong = [f"{name}:{line} imports {target or 'the root'}" for target, line in imports(MODULES[name])]
    wrong = [w for w, (target, _) in zip(wrong, imports(MODULES[name]), strict=True) if room(target) not in allowed]
    assert not wrong, "; ".join(wrong)


def test_the_rules_themselves_make_no_circle_of_rooms() -> None:
    """Two rooms that may import each other would be one room, whatever the files do today."""
    rules = {a: {*b, *(set() if a in OWN_RULE else SPINE)} - {a} for a, b in ALLOWED.items()}
    order: list[str] = []
    while len(order) < len(rules):
        free = sorted(a for a in rules if a not in order and rules[a] & set(rules) <= set(order))
        assert free, f"these rooms need each other: {sorted(set(rules) - set(order))}"
        order += free


def test_no_circle_of_files() -> None:
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"import circle: {' -> '.join((*trail[trail.index(node) :], node))}"
        if node in done or node not in GRAPH:
            return
        for target in sorted(GRAPH[node]):
            visit(target, (*trail, node))
        done.add(node)

    for name in sorted(GRAPH):
        visit(name, ())


def test_no_room_is_too_large_to_know() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    rooms: Counter[str] = Counter()
    for name, count in lines.items():
        rooms[room(name)] += count
    large = {r: n for r, n in rooms.items() if n > LARGEST_ROOM * sum(lines.values())}
    assert not large, f"above {LARGEST_ROOM:.0%} of all lines: {large}"
    files = Counter(str(path.parent.relative_to(SOURCE)) for path in MODULES.values())
    assert not {folder: n for folder, n in files.items() if n > MOST_FILES}


def test_no_two_files_of_one_name() -> None:
    names = Counter(path.name for path in MODULES.values() if path.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]


def test_torch_only_in_models_and_above() -> None:
    wrong = []
    for name, path in MODULES.items():
        if room(name) not in WITHOUT_TORCH:
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
    for name, path in MODULES.items():
        if room(name) in ("models", "moved"):
            continue
        code = "\n".join(
            line for line in path.read_text().splitlines() if "import" in line or not line.lstrip().startswith("#")
        )
        wrong += [f"{name} names {f}" for f in families if f in code]
    assert not wrong


def test_the_robot_side_needs_only_numpy_and_a_wire_codec() -> None:
    allowed = {"numpy", "msgpack", "websockets", "h11", "prometheus_client", "zmq", "mujoco", "rclpy", "mcap"}
    allowed |= {"rosbags", "cyclonedds", "athena_vla"}
    messages = {
        "sensor_msgs",
        "trajectory_msgs",
        "control_msgs",
        "builtin_interfaces",
        "std_msgs",
        "std_srvs",
        "geometry_msgs",
        "launch",
        "launch_ros",
    }
    wrong = []
    for path in (p for folder in sorted(ROBOT_SIDE) for p in sorted((SOURCE / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            tops = {n.split(".")[0] for n in names}
            wrong += [f"{path.name} imports {t}" for t in tops - allowed - messages - set(sys.stdlib_module_names)]
    assert not wrong
