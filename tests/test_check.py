"""Every check with a planted defect that it finds, and silence on a clean recording."""
# The frames of these small recordings are in memory (`Pixels`), which the general type does not say.
# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla.check import RULES, CheckConfig, CheckReport, check
from athena_vla.errors import UnknownName
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.placeholders import is_placeholder
from recordings import Pixels, clean, edited, pictures, write

ALWAYS = {"token.coarse"}  # a fact about every recording, not a defect


def run(path: Path, **changes) -> CheckReport:
    return check(CheckConfig(input=path, **changes))


def codes(report: CheckReport) -> set[str]:
    return {f.code for f in report.findings}


@pytest.mark.parametrize("robot", [None, "toy"])
def test_a_clean_recording_is_silent(tmp_path, robot):
    report = run(write(tmp_path / "in"), robot=robot)
    assert codes(report) - ALWAYS == set()
    assert report.exit_status == 0
    assert (report.episodes, report.frames) == (3, 180)


def nan(e: Episode) -> Episode:
    actions = e.actions.copy()
    actions[10:12, 1] = np.nan
    return replace(e, actions=actions)


def frames(e: Episode, change: Callable[[np.ndarray], None]) -> Episode:
    images = pictures(np.asarray(e.states, np.float64), 1)
    change(images)
    return replace(e, cameras={"front": Pixels(images)})


def white(images: np.ndarray) -> None:
    images[:] = 255


def black(images: np.ndarray) -> None:
    images[20:30] = 3


def frozen(images: np.ndarray) -> None:
    images[20:35] = images[20]


def stale(images: np.ndarray) -> None:
    images[0] = 255 - images[30]


def repeated(images: np.ndarray) -> None:
    for i in range(1, len(images), 3):
        images[i] = images[i - 1]


def stamps(e: Episode, times: np.ndarray) -> Episode:
    return edited(e, timestamps=times)


def gap(e: Episode) -> Episode:
    times = e.timestamps.copy()
    times[30:] += 0.5
    return stamps(e, times)


def backwards(e: Episode) -> Episode:
    times = e.timestamps.copy()
    times[[10, 11]] = times[[11, 10]]
    return stamps(e, times)


def jump(e: Episode) -> Episode:
    actions = e.actions.copy()
    actions[30:, 0] += 0.9
    return replace(e, actions=actions)


def saturated(e: Episode) -> Episode:
    return replace(e, actions=np.minimum(e.actions, np.quantile(e.actions, 0.6, axis=0)).astype(np.float32))


def idle(e: Episode) -> Episode:
    rows = np.minimum(np.arange(len(e)), 25)
    return replace(e, actions=e.actions[rows], states=e.states[np.minimum(rows, 24)], cameras={
        "front": Pixels(pictures(np.asarray(e.states[np.minimum(rows, 24)], np.float64), 1))})  # fmt: skip


def shuffled(e: Episode) -> Episode:
    return replace(e, states=e.states * np.array([1, 1, -1], np.float32))


def deltas(e: Episode) -> Episode:
    steps = np.diff(e.states, axis=0, append=e.states[-1:])
    return replace(e, actions=steps.astype(np.float32))


def lagging(e: Episode) -> Episode:
    return replace(e, states=np.concatenate([np.repeat(e.actions[:1], 6, axis=0), e.actions[:-6]]))


def unrelated(e: Episode) -> Episode:
    rng = np.random.default_rng(5)
    walk = np.cumsum(rng.normal(0, 0.05, e.actions.shape), axis=0)
    return replace(e, actions=(0.5 * walk / np.abs(walk).max()).astype(np.float32))


def fast(e: Episode) -> Episode:
    t = e.timestamps[:, None]
    actions = (0.7 * np.sin(2 * np.pi * 2.2 * t + np.arange(3))).astype(np.float32)
    return replace(e, actions=actions, states=np.concatenate([actions[:1], actions[:-1]]))


# code -> (how a clean episode is spoiled, frames that must be named or None)
PLANTED: dict[str, tuple[Callable[[Episode], Episode], tuple[int, int] | None]] = {
    "number.not_finite": (nan, (10, 12)),
    "camera.black": (lambda e: frames(e, black), (20, 30)),
    "camera.frozen": (lambda e: frames(e, frozen), (20, 35)),
    "camera.stale_start": (lambda e: frames(e, stale), (0, 1)),
    "camera.repeated": (lambda e: frames(e, repeated), None),
    "camera.none": (lambda e: replace(e, cameras={}), None),
    "camera.count": (lambda e: replace(e, cameras={"front": Pixels(e.cameras["front"].images[:50])}), (50, 60)),
    "clock.rate": (lambda e: stamps(e, e.timestamps * 1.3), None),
    "clock.drift": (lambda e: stamps(e, e.timestamps + 0.003 * e.timestamps**2), None),
    "clock.dropped": (gap, (30, 31)),
    "clock.backwards": (backwards, (11, 12)),
    "clock.not_finite": (lambda e: stamps(e, np.where(e.timestamps > 5, np.nan, e.timestamps)), None),
    "joint.degrees": (lambda e: replace(e, actions=np.rad2deg(e.actions), states=np.rad2deg(e.states)), None),
    "joint.percent": (lambda e: replace(e, actions=100 * e.actions / np.abs(e.actions).max(0)), None),
    "joint.ticks": (lambda e: replace(e, actions=e.actions * 650 + 2048, states=e.states * 650 + 2048), None),
    "joint.limits": (lambda e: replace(e, actions=e.actions + 1.5, states=e.states + 1.5), None),
    "joint.velocity": (fast, None),
    "joint.jump": (jump, (30, 31)),
    "column.unused": (lambda e: replace(e, actions=np.c_[e.actions, e.actions], joint_names=(*e.joint_names, *"abc")),
                      None),
    "column.unused_state": (lambda e: replace(e, states=np.c_[e.states, e.states],
                                              state_names=(*e.state_names, *"abc")), None),
    "joint.constant": (lambda e: replace(e, actions=e.actions * np.array([1, 0, 1], np.float32)), None),
    "joint.saturated": (saturated, None),
    "joint.mismatch": (lambda e: replace(e, joint_names=("a", "b", "c"), state_names=("a", "b", "c")), None),
    "action.constant": (lambda e: replace(e, actions=np.zeros_like(e.actions)), (0, 60)),
    "action.next_state": (lambda e: replace(e, actions=np.concatenate([e.states[1:], e.states[-1:]])), None),
    "action.delta": (deltas, None),
    "action.same_state": (lambda e: replace(e, actions=e.states), None),
    "joint.outside": (lambda e: replace(e, actions=e.actions * 5, states=e.states * 5), None),
    "camera.uniform": (lambda e: frames(e, white), None),
    "action.lag": (lagging, None),
    "replay.mismatch": (shuffled, None),
    "motion.idle": (idle, None),
    "language.missing": (lambda e: edited(e, instructions=()), None),
    "language.useless": (lambda e: edited(e, instructions=("perform a task",)), None),
    "success.missing": (lambda e: edited(e, success=None), None),
    "success.false": (lambda e: edited(e, success=False), None),
    "action.unrelated": (unrelated, None),
    "joint.width": (lambda e: replace(e, states=e.states[:, :2], state_names=e.state_names[:2]), None),
    "token.coarse": (lambda e: e, None),
    "episode.short": (lambda e: clean(7, length=5), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_defect_is_found(tmp_path, code):
    spoil, where = PLANTED[code]
    episode = replace(spoil(clean(1)), id="episode_0001")
    report = run(write(tmp_path / "in", episode), robot="toy")
    found = [f for f in report.findings if f.code == code]
    assert found, f"{code} not among {sorted(codes(report))}"
    first = found[0]
    assert first.severity == RULES[code].severity
    assert first.why
    assert first.fix
    assert first.message
    if where and where != (0, 0):
        assert first.frames == where
    if first.severity == "error":
        assert report.exit_status == 1


def test_a_defect_in_one_episode_names_that_episode(tmp_path):
    episodes = [clean(0), replace(frames(clean(1), black), id="episode_0001"), clean(2)]
    report = run(write(tmp_path / "in", *episodes))
    assert [f.episode for f in report.findings if f.code == "camera.black"] == ["episode_0001"]


def test_a_stale_first_picture_is_recognised_as_the_previous_episodes_last(tmp_path):
    first, second = clean(0), clean(1)
    last = first.cameras["front"][len(first) - 1]

    def plant(images: np.ndarray) -> None:
        images[0] = last

    report = run(write(tmp_path / "in", first, replace(frames(second, plant), id="episode_0001")))
    found = [f for f in report.findings if f.code == "camera.stale_start"]
    assert [f.episode for f in found] == ["episode_0001"]
    assert "episode before" in found[0].message


def test_frozen_pictures_of_a_robot_that_rests_are_no_defect(tmp_path):
    report = run(write(tmp_path / "in", replace(idle(clean(1)), id="episode_0001")))
    assert "camera.frozen" not in codes(report)


def test_duplicates_are_named_with_their_twin(tmp_path):
    report = run(write(tmp_path / "in", clean(0), clean(1), replace(clean(0), id="episode_0009")))
    found = [f for f in report.findings if f.code == "episode.duplicate"]
    assert [(f.episode, "episode_0000" in f.message) for f in found] == [("episode_0009", True)]


def test_leakage_between_declared_splits(tmp_path, shared):
    import shutil

    source = shared / "data/g1_locomanip_arena_v21_novideo"
    shutil.copytree(source, tmp_path / "set")
    data = tmp_path / "set/data/chunk-000"
    shutil.copy(data / "episode_000000.parquet", data / "episode_000001.parquet")
    line = json.loads((tmp_path / "set/meta/episodes.jsonl").read_text().splitlines()[0])
    with open(tmp_path / "set/meta/episodes.jsonl", "a") as file:
        file.write(json.dumps({**line, "episode_index": 1}) + "\n")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    info["splits"] = {"train": "0:1", "val": "1:2"}
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    assert {"split.leakage", "episode.duplicate", "metadata.count"} <= codes(run(tmp_path / "set"))


def test_files_that_cannot_be_read_are_errors_and_do_not_hide_the_others(tmp_path):
    root = write(tmp_path / "in", clean(0), clean(1), clean(2))
    (root / "episode_0001/trajectory.npz").write_bytes((root / "episode_0001/trajectory.npz").read_bytes()[:300])
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (root / "episode_0002/images/front/rgb_0003.png").write_bytes(pointer)
    report = run(root)
    by_episode = {(f.code, f.episode) for f in report.findings}
    assert ("episode.unreadable", "episode_0001") in by_episode
    assert ("file.lfs_pointer", "episode_0002") in by_episode
    assert (report.episodes, report.exit_status) == (2, 1)


def test_missing_pictures_keep_their_place(tmp_path):
    root = write(tmp_path / "in", clean(0))
    for i in (7, 8):
        (root / f"episode_0000/images/front/rgb_{i:04d}.png").unlink()
    found = [f for f in run(root).findings if f.code == "camera.unreadable"]
    assert found[0].frames == (7, 9)
    (root / "episode_0000/images/front/rgb_0059.png").unlink()
    assert "camera.count" in codes(run(root))


def test_promised_videos_that_are_missing_are_errors(shared):
    report = run(shared / "data/g1_locomanip_arena_v21_novideo")
    assert {f.severity for f in report.findings if f.code == "camera.missing"} == {"error"}
    assert report.exit_status == 1


@pytest.mark.parametrize("name", ["nowhere", "empty", "text.txt"])
def test_exit_status_two_when_nothing_can_be_read(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    report = run(tmp_path / name)
    assert report.exit_status == 2
    assert report.findings[0].severity == "error"


def test_json_has_the_promised_keys(tmp_path):
    raw = json.loads(json.dumps(run(write(tmp_path / "in", clean(0, instructions=()))).to_dict()))
    assert set(raw["findings"][0]) == {"code", "severity", "message", "episode", "frames", "why", "fix"}


def test_lossy_video_of_a_moving_robot_is_not_accused_of_repeated_frames(shared):
    report = run(shared / "data/gr1_native_v30")
    assert codes(report).isdisjoint({"camera.repeated", "camera.frozen", "camera.black"})


def test_real_recordings_show_what_is_known_about_them(shared):
    lagging = run(shared / "data/athena_isaac_folder_gr1", robot="athena")
    assert {"joint.constant", "joint.limits"} <= codes(lagging)
    assert {"action.delta", "joint.unnamed"} <= codes(run(shared / "data/rlds_bridge_octo_debug"))


@pytest.mark.parametrize(
    ("text", "useless"),
    [
        ("perform a task", True),
        ("", True),
        ("valid", True),
        ("12345", True),
        ("pick up the pear", False),
        ("open drawer", False),
        ("squat", False),
        ("Wave!", False),
        ("do this", True),
        ("step1: do this", True),
        ("task description", True),
        ("Task 3", True),
        ("so101 teleoperation", True),
        ("Unitree G1 teleoperation.", True),
        ("<task>", True),
        ("do the dishes", False),
        ("perform a handstand", False),
        ("take 2 cups from the shelf", False),
    ],
)
def test_useless_instructions(text, useless):
    assert is_placeholder(text) is useless


def test_every_rule_is_named_once_and_says_why_and_what_to_do():
    assert all(r.why.endswith(".") and r.fix.endswith(".") for r in RULES.values())


# Findings about files and whole recordings: planted on disk, after a clean recording was written.


def unnamed(root: Path) -> None:
    for file in root.glob("*/metadata.json"):
        raw = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in raw.items() if k not in ("joint_names", "state_names")}))


def clockless(root: Path) -> None:
    for file in root.glob("*/metadata.json"):
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "fps"}))
        with np.load(file.parent / "trajectory.npz") as arrays:
            kept = {k: arrays[k] for k in arrays.files if k != "timestamps"}
        np.savez(file.parent / "trajectory.npz", **kept)


def pointer(root: Path) -> None:
    (root / "episode_0001/trajectory.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def cut(root: Path) -> None:
    file = root / "episode_0001/trajectory.npz"
    file.write_bytes(file.read_bytes()[:-200])


def torn(root: Path) -> None:
    file = root / "episode_0001/images/front/rgb_0010.png"
    file.write_bytes(file.read_bytes()[:200])


def only_pictures(root: Path) -> None:
    import shutil

    images = (root / "episode_0000/images/front").rename(root.parent / "front")
    shutil.rmtree(root)
    images.rename(root)


ON_DISK: dict[str, Callable[[Path], None]] = {
    "joint.unnamed": unnamed, "clock.missing": clockless, "file.lfs_pointer": pointer, "episode.unreadable": cut,
    "camera.unreadable": torn, "action.none": only_pictures,
}  # fmt: skip


@pytest.mark.parametrize("code", ON_DISK)
def test_a_defect_planted_on_disk_is_found(tmp_path, code):
    root = write(tmp_path / "in")
    assert code not in codes(run(root))
    ON_DISK[code](root)
    assert code in codes(run(root))


def lost_video(root: Path) -> None:
    next(root.rglob("episode_000001.mp4")).unlink()


def short_row(root: Path) -> None:
    lines = [json.loads(x) for x in (root / "meta/episodes.jsonl").read_text().splitlines()]
    lines[1]["length"] += 7
    (root / "meta/episodes.jsonl").write_text("\n".join(json.dumps(x) for x in lines))


def wrong_total(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "total_frames": 99}))


def empty(root: Path) -> None:
    (root / "meta/episodes.jsonl").write_text("")
    for file in root.rglob("*.parquet"):
        file.unlink()


IN_SET: dict[str, Callable[[Path], None]] = {
    "camera.missing": lost_video, "metadata.length": short_row, "metadata.count": wrong_total, "recording.empty": empty,
}  # fmt: skip


@pytest.mark.parametrize("code", IN_SET)
def test_a_defect_planted_in_a_lerobot_set_is_found(tmp_path, code):
    from athena_vla.recordings.convert import ConvertConfig, convert

    write(tmp_path / "in", *(clean(i, length=20) for i in range(2)))
    convert(ConvertConfig(input=tmp_path / "in", out=tmp_path / "set", to="lerobot_v21", video=True))
    assert codes(run(tmp_path / "set")).isdisjoint(IN_SET)
    IN_SET[code](tmp_path / "set")
    report = run(tmp_path / "set")
    assert code in codes(report)
    if code == "recording.empty":
        assert report.exit_status == 2


def test_every_code_has_a_planted_defect():
    elsewhere = {"episode.duplicate", "episode.overlap", "split.leakage"}  # need two episodes: tests of their own above
    elsewhere |= {"channel.limits", "channel.rate", "channel.unit"}  # need a robot with channels: test_channels_data.py
    elsewhere |= {"language.predictable"}  # needs a dozen episodes: test_predictable.py
    elsewhere |= {"episode.cut"}  # needs a bag: test_mcap_file.py
    elsewhere |= {  # what readers note: tests/test_truthful.py
        "articulation.several", "stream.unused", "column.unreadable", "camera.depth",
        "camera.joined_by_rank", "camera.joined_by_time", "camera.pictures_lost", "camera.sparse", "camera.shared_span",
        "episode.unlisted", "episode.duplicate_number",
    }  # fmt: skip
    assert set(PLANTED) | set(ON_DISK) | set(IN_SET) | elsewhere == set(RULES)


def test_replay_against_a_joint_that_tracks_by_the_same_law():
    from athena_vla.check.action_state import replay_error

    rng = np.random.default_rng(0)
    targets = np.cumsum(rng.normal(0, 0.1, (300, 2)), axis=0)
    states = np.zeros_like(targets)
    for t in range(len(targets) - 1):
        states[t + 1] = states[t] + 0.25 * (targets[max(t - 4, 0)] - states[t])
    assert replay_error(targets, states).max() < 0.05
    assert replay_error(targets, states + 0.3).max() < 0.05  # an offset is the controller's droop, not another motion
    assert replay_error(targets, states * np.array([1, -1]))[1] > 0.6
    assert replay_error(targets[::-1].copy(), states).min() > 0.6


def test_findings_read_like_a_linters(tmp_path) -> None:
    """One line per code with its count and worst case, errors last; `explain` and `full` say the rest."""
    small, large = clean(0), clean(1)
    small = replace(small, actions=small.actions + np.where(np.arange(60) == 30, 0.5, 0.0)[:, None].astype(np.float32))
    large = replace(large, actions=large.actions + np.where(np.arange(60) == 30, 0.9, 0.0)[:, None].astype(np.float32))
    broken = replace(clean(2), actions=np.rad2deg(clean(2).actions), states=np.rad2deg(clean(2).states))
    write(tmp_path / "rec", small, large, broken)
    report = check(CheckConfig(input=tmp_path / "rec", robot="toy"))
    printed = str(report).splitlines()
    found = [line.split()[1].rstrip(":") for line in printed[:-2]]
    assert sorted(found) == sorted({f.code for f in report.findings}), "one line per code"
    severities = [line.split()[0] for line in printed[:-2]]
    assert severities == sorted(severities, key=["info", "warning", "error"].index)
    jump = next(line for line in printed if " joint.jump " in line)
    assert "(2 times)" in jump or "(3 times)" in jump
    assert "0.9" in jump
    assert "--explain" in printed[-1]
    explained = str(check(CheckConfig(input=tmp_path / "rec", robot="toy", explain="joint.jump")))
    assert RULES["joint.jump"].why in explained
    assert explained.count("joint.jump") == 1 + sum(f.code == "joint.jump" for f in report.findings)
    full = str(check(CheckConfig(input=tmp_path / "rec", robot="toy", full=True))).splitlines()
    assert len(full) == len(report.findings) + 1
    with pytest.raises(UnknownName, match="joint.jump"):
        check(CheckConfig(input=tmp_path / "rec", explain="joint.jumps"))


def test_a_miss_within_a_gearbox_is_no_mismatch(tmp_path: Path) -> None:
    """Joints that move by 0.04 rad and are disturbed by 0.01 rad, as real ones are: a large share of nothing."""
    draw = np.random.default_rng(5)

    def disturbed(amplitude: float) -> Episode:
        episode = clean(0)
        time = np.arange(len(episode)) / episode.fps
        wish = amplitude * np.sin(np.outer(time, [2.1, 1.3, 1.7]) + np.arange(3.0))
        noise = np.cumsum(draw.normal(size=wish.shape), axis=0)
        noise = amplitude * 0.6 * (noise - noise.mean(axis=0)) / noise.std(axis=0)
        states = np.vstack([wish[:1], wish[:-1]]) + noise
        return replace(episode, actions=wish, states=states)

    small, large = (run(write(tmp_path / name, disturbed(a))) for name, a in (("small", 0.014), ("large", 0.14)))
    assert "replay.mismatch" in codes(large)
    assert "replay.mismatch" not in codes(small)
