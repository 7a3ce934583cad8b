"""Channels from a recording to a set: by name, in one order, resampled as asked, checked, and nothing lost unsaid."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from athena_vla.check import CheckConfig, check
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.normalize import Normalizer
from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError, InvalidEmbodiment, JointMismatch, UnknownName
from athena_vla.recordings.alignment import Alignment, align
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats import open_recording
from channels import FORCE, GRIP, HEIGHT, TOKEN, YAW_RATE, commands, recorded, robot
from recordings import clean, write


def toml(body: Embodiment, path: Path) -> Path:
    """The robot as a file, written without the code that reads it."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in body.to_dict().items() if not isinstance(v, list)]
    for kind in ("joints", "cameras", "channels"):
        for part in body.to_dict().get(kind, []):
            lines.append(f"[[{kind[:-1]}]]")
            lines += [f"{k} = {json.dumps(v)}" for k, v in part.items() if v is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_three_vectors_have_one_order() -> None:
    body = robot()
    joints = ("base", "shoulder", "finger")
    assert body.action_names == body.command_names == (*joints, "base_height", "yaw_rate", "grip")
    assert body.state_names == (*joints, "base_height", "wrist_force")
    assert (body.state_dim, body.action_dim, body.command_dim) == (5, 6, 6)
    assert body.action_columns.units == ("rad", "rad", "rad", "m", "rad/s", "1")
    state = np.array([0.1, 0.2, 0.3, 0.61, 7.0])
    # Observed channels stand where they are measured, the others at their default.
    assert body.command_of(state).tolist() == [0.1, 0.2, 0.3, 0.61, 0.0, 1.0]
    locked = dataclasses.replace(body, joints=(body.joints[0], *(_locked(j) for j in body.joints[1:])))
    assert locked.action_names == ("base", "base_height", "yaw_rate", "grip")
    assert locked.action_index.tolist() == [0, 3, 4, 5]
    assert locked.action_of(state).tolist() == [0.1, 0.61, 0.0, 1.0]


def _locked(joint):
    return dataclasses.replace(joint, owner="locked")


def test_columns_are_found_by_name_whatever_their_order_and_what_nobody_takes_is_said(tmp_path) -> None:
    body, episode = robot(), recorded()
    aligned = align(episode, body, Alignment())
    assert np.array_equal(aligned.actions[:, :3], episode.actions[:, 1:4])
    assert np.allclose(aligned.actions[:, 3:], commands(60), atol=1e-6)
    assert np.array_equal(aligned.states, episode.states[:, [0, 1, 2, 4, 3]])
    unused = [n for n in aligned.notes if n.code == "column.unused"]
    assert [n.items for n in unused] == [("left_over",)]
    report = check(CheckConfig(input=write(tmp_path / "in", episode), robot=str(toml(body, tmp_path / "r.toml"))))
    found = {f.code: f for f in report.findings}
    assert "left_over" in found["column.unused"].message
    assert not {"channel.limits", "channel.rate", "channel.unit", "joint.jump", "joint.mismatch"} & set(found)


def test_a_robot_without_channels_says_which_recorded_columns_it_leaves_out(tmp_path) -> None:
    result = build(BuildConfig(input=write(tmp_path / "in", recorded(0), recorded(1)), out=tmp_path / "s", robot="toy"))
    said = {n.items for n in result.notes if n.code == "column.unused"}
    assert said == {("yaw_rate", "base_height", "grip", "left_over"), ("wrist_force", "base_height")}
    report = check(CheckConfig(input=tmp_path / "in", robot="toy"))
    codes = {f.code: f.severity for f in report.findings}
    assert codes["column.unused"] == "warning"
    assert codes["column.unused_state"] == "info"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda e: _without_action(e, "yaw_rate"), r"no action column for channels \['yaw_rate'\] of 'toy'"),
        (lambda e: _without_state(e, "wrist_force"), r"no state column for channels \['wrist_force'\] of 'toy'"),
        (lambda e: dataclasses.replace(e, states=np.zeros((60, 0)), state_names=()), r"\['base_height', 'wrist_fo"),
        (
            lambda e: dataclasses.replace(
                e, actions=e.actions[:, :3], joint_names=tuple(f"action_{i:02d}" for i in range(3))
            ),
            r"6 values: base, shoulder, finger, base_height, yaw_rate, grip. In that order, 3 values lack base_height",
        ),
        (
            lambda e: dataclasses.replace(
                e, states=e.states[:, :3], state_names=tuple(f"state_{i:02d}" for i in range(3))
            ),
            r"3 unnamed state columns.*lack base_height, wrist_force",
        ),
    ],
)  # fmt: skip
def test_a_recording_without_a_channel_is_refused_with_its_name(spoil, words: str) -> None:
    with pytest.raises(JointMismatch, match=words):
        align(spoil(recorded()), robot(), Alignment())


def _without_action(e: Episode, name: str) -> Episode:
    kept = [i for i, n in enumerate(e.joint_names) if n != name]
    return dataclasses.replace(e, actions=e.actions[:, kept], joint_names=tuple(e.joint_names[i] for i in kept))


def _without_state(e: Episode, name: str) -> Episode:
    kept = [i for i, n in enumerate(e.state_names) if n != name]
    return dataclasses.replace(e, states=e.states[:, kept], state_names=tuple(e.state_names[i] for i in kept))


def test_names_of_the_wrong_number_are_refused_with_the_names(tmp_path) -> None:
    write(tmp_path / "in", recorded())
    file = tmp_path / "in" / "episode_0000" / "metadata.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "joint_names": ["base", "shoulder", "finger"]}))
    (broken,) = open_recording(tmp_path / "in").episodes()
    assert "base, shoulder, finger" in str(getattr(broken, "reason", ""))
    with pytest.raises(DatasetError, match=r"7.*base, shoulder, finger"):
        build(BuildConfig(input=tmp_path / "in", out=tmp_path / "s", robot="toy"))


def test_a_joint_map_names_channels_and_an_unknown_one_is_refused() -> None:
    episode = recorded()
    renamed = dataclasses.replace(
        episode, joint_names=tuple("navigate_wz" if n == "yaw_rate" else n for n in episode.joint_names)
    )
    aligned = align(renamed, robot(), Alignment(joint_map={"yaw_rate": "navigate_wz"}))
    assert np.array_equal(aligned.actions[:, 4], episode.actions[:, 0])
    with pytest.raises(UnknownName, match=r"joint or channel of robot 'toy' 'vx'.*base_height"):
        align(renamed, robot(), Alignment(joint_map={"vx": "navigate_vx"}))


def test_unnamed_columns_as_wide_as_the_robot_take_its_order_and_the_note_says_which() -> None:
    body, episode = robot(), recorded()
    ours = align(episode, body, Alignment())
    unnamed = dataclasses.replace(
        episode,
        actions=ours.actions,
        states=ours.states,
        joint_names=tuple(f"action_{i:02d}" for i in range(6)),
        state_names=tuple(f"state_{i:02d}" for i in range(5)),
    )
    again = align(unnamed, body, Alignment())
    assert np.array_equal(again.actions, ours.actions)
    assert np.array_equal(again.states, ours.states)
    words = [n.text for n in again.notes if n.code == "column.unnamed"]
    assert "then the channels base_height, yaw_rate, grip" in words[0]
    assert "then the channels base_height, wrist_force" in words[1]


def test_each_channel_is_resampled_as_its_description_asks() -> None:
    """50 Hz to 10 Hz and 8 Hz to 10 Hz, against a slow loop over the rules."""
    body = robot()
    for fps in (50.0, 8.0):
        base = recorded(length=120)
        episode = dataclasses.replace(base, clock=dataclasses.replace(base.clock, stamps=np.arange(120) / fps, fps=fps))
        aligned = align(episode, body, Alignment())
        ratio = fps / body.control_hz
        first = max(0, int(np.ceil(1 / ratio - 1 - 1e-9)))
        force, yaw, height = episode.states[:, 3], episode.actions[:, 0], episode.actions[:, 4]
        for row, k in enumerate(range(first, first + 12)):
            state, target = k * ratio, (k + 1) * ratio - 1
            low = int(np.floor(target + 1e-9))
            share = target - low
            wanted = height[low] * (1 - share) + (height[low + 1] * share if share > 1e-9 else 0.0)
            assert aligned.actions[row, 3] == pytest.approx(wanted, abs=1e-6)
            assert aligned.actions[row, 4] == yaw[low]  # held: never between two recorded values
            # The mean over the control period that ends with the row, by a fine sum of the piecewise constant signal.
            times = np.linspace(max(state + 1 - ratio, 0.0), min(state + 1, 120.0), 20001)[:-1]
            mean = force[np.minimum(times.astype(int), 119)].mean()
            assert aligned.states[row, 4] == pytest.approx(mean, abs=0.02)


def test_the_set_holds_every_column_under_its_name_and_the_normaliser_is_exact(tmp_path) -> None:
    body = robot()
    source = write(tmp_path / "in", *(recorded(i) for i in range(3)))
    build(BuildConfig(input=source, out=tmp_path / "set", robot=str(toml(body, tmp_path / "r.toml")), horizon=4))
    dataset = Dataset.open(tmp_path / "set")
    assert dataset.robot == body
    sample = dataset[0]
    assert sample.chunk.shape == (4, 6)
    assert sample.observation.require(body).state.shape == (5,)
    normalizer = dataset.normalizer
    assert normalizer.joint_names == body.action_names
    assert normalizer.state_names == body.state_names
    assert normalizer.state_column.tolist() == [0, 1, 2, 3, -1, -1]
    again = Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    state = sample.observation.state
    unit = again.encode(sample.chunk, state)
    assert np.abs(unit).max() <= 1.0
    assert np.allclose(again.decode(unit, state), sample.chunk, atol=1e-6)
    card = (tmp_path / "set" / "README.md").read_text()
    assert "| base_height | m | absolute |" in card
    assert "| yaw_rate | rad/s | absolute |" in card
    info = json.loads((tmp_path / "set" / "meta" / "info.json").read_text())
    assert tuple(info["features"]["action"]["names"]) == body.action_names
    assert tuple(info["features"]["observation.state"]["names"]) == body.state_names


def test_latent_tokens_take_their_limits_from_the_training_data(tmp_path) -> None:
    """Extremes, greatest rate and its derivative, counted here row by row over the training episodes."""
    body = robot(TOKEN)
    assert body.open_channels == ("token",)
    episodes = []
    for i in range(4):
        base = clean(i)
        token = np.sin(np.arange(60) * 0.7 + i) * (1 + i)
        episodes.append(
            dataclasses.replace(
                base,
                joint_names=(*base.joint_names, "token"),
                actions=np.c_[base.actions, token].astype(np.float32),
            )
        )
    source = write(tmp_path / "in", *episodes)
    config = BuildConfig(input=source, out=tmp_path / "set", robot=str(toml(body, tmp_path / "r.toml")))
    result = build(config)
    channel = Dataset.open(tmp_path / "set").robot.channel("token")
    trained = [e.actions[:, 3].astype(np.float32) for e in episodes if e.id in result.train_episodes]
    assert channel.lower == float(min(t.min() for t in trained))
    assert channel.upper == float(max(t.max() for t in trained))
    steps = [np.diff(t.astype(np.float64)) * 10 for t in trained]
    assert channel.max_rate == pytest.approx(max(np.abs(s).max() for s in steps), rel=1e-12)
    assert channel.max_rate_derivative == pytest.approx(max(np.abs(np.diff(s)).max() * 10 for s in steps), rel=1e-12)
    assert channel.limits == "data"
    assert Dataset.open(tmp_path / "set").robot.learned_limits == ("token",)
    assert "not called safe" in (tmp_path / "set" / "README.md").read_text()


def test_a_latent_token_that_never_changes_has_a_range_all_the_same(tmp_path) -> None:
    base = clean(0)
    episode = dataclasses.replace(
        base, joint_names=(*base.joint_names, "token"), actions=np.c_[base.actions, np.full(60, 2.5)]
    )
    source = write(tmp_path / "in", episode)
    build(BuildConfig(input=source, out=tmp_path / "set", robot=str(toml(robot(TOKEN), tmp_path / "r.toml"))))
    channel = Dataset.open(tmp_path / "set").robot.channel("token")
    assert channel.lower < 2.5 < channel.upper
    assert channel.max_rate > 0


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("channel.limits", lambda a: a + np.array([0.5, 0, 0])),
        ("channel.unit", lambda a: a * np.array([1000.0, 1, 1])),
        ("channel.rate", lambda a: a + np.array([0.05, 0, 0]) * (np.arange(len(a)) % 2)[:, None]),
    ],
)
def test_planted_defects_of_channels_are_found(tmp_path, code: str, spoil) -> None:
    base = clean(0)
    ours = spoil(commands(60))
    episode = dataclasses.replace(
        base,
        joint_names=(*base.joint_names, "base_height", "yaw_rate", "grip"),
        actions=np.c_[base.actions, ours],
        state_names=(*base.state_names, "base_height", "wrist_force"),
        states=np.c_[base.states, ours[:, 0], np.zeros(60)],
    )
    file = toml(robot(), tmp_path / "r.toml")
    found = {f.code: f for f in check(CheckConfig(input=write(tmp_path / "in", episode), robot=str(file))).findings}
    assert code in found, sorted(found)
    assert "base_height" in found[code].message
    if code == "channel.unit":
        assert "millimetres" in found[code].message
        assert found[code].severity == "error"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "h"\nlower = 0.1\nupper = 0.2', "channel 'h' has no unit; it needs name, unit, lower, upper"),
        ('name = "h"\nunit = "m"', "channel 'h' has no lower, no upper"),
        ('name = "h"\nunit = "m"\nlower = 0.8\nupper = 0.4', "channel 'h' has lower 0.8 not below upper 0.4"),
        ('name = "h"\nunit = "m"\nlower = 0.4\nupper = 0.8', "it needs a positive max_rate and max_rate_derivative"),
        (
            'name = "h"\nunit = "m"\nlower = 0\nupper = 1\nobserved = false\nowner = "locked"',
            "neither commanded",
        ),
        ('name = "h"\nunit = "ft"\nlower = 0\nupper = 1', "unit 'ft'; known are m, m/s, rad, rad/s, 1"),
    ],
)
def test_a_channel_that_says_too_little_is_refused_by_name(tmp_path, text: str, words: str) -> None:
    from athena_vla import embodiment

    file = toml(embodiment.load("toy"), tmp_path / "r.toml")
    file.write_text(f"{file.read_text()}[[channel]]\n{text}\n")
    with pytest.raises(InvalidEmbodiment, match=words):
        embodiment.load(file)


def test_who_commands_what() -> None:
    assert HEIGHT.is_commanded
    assert YAW_RATE.is_commanded
    assert not FORCE.is_commanded
    assert (HEIGHT.stop, YAW_RATE.stop, GRIP.stop) == (None, 0.0, 1.0)


def test_info_says_which_columns_are_the_robots(tmp_path) -> None:
    from athena_vla.recordings.info import InfoConfig, info

    write(tmp_path / "rec", *(recorded(i) for i in range(2)))
    fits = info(InfoConfig(input=tmp_path / "rec", robot=str(toml(robot(), tmp_path / "walker.toml")))).fits
    actions, states = fits
    assert actions.found == robot().command_names
    assert (actions.missing, actions.left_over) == ((), ("left_over",))
    assert states.missing == ()
    said = str(info(InfoConfig(input=tmp_path / "rec", robot="athena")))
    assert "actions    0 of the 23 of 'athena' are recorded under their names; missing: left_hip_pitch" in said
    assert info(InfoConfig(input=tmp_path / "rec")).fits == ()
