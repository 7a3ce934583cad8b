"""The robot's body against trigonometry, and a policy's chunks against the policy asked by hand at the same rows."""

from dataclasses import replace

import numpy as np
import pytest

from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import DatasetError, ViewError
from athena_vla.view import ViewConfig, view
from athena_vla.view.recorded_timeline import timeline_of
from recordings import clean

ARM = """<mujoco model="arm"><compiler angle="radian"/><worldbody>
<body name="upper" pos="0 0 1"><joint name="base" type="hinge" axis="0 1 0"/>
<geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.03"/>
<body name="lower" pos="0.5 0 0"><joint name="shoulder_joint" type="hinge" axis="0 1 0"/>
<geom type="box" pos="0.1 0 0" size="0.1 0.02 0.02"/>
<body name="tip" pos="0.2 0 0"><joint name="finger" type="slide" axis="1 0 0"/><geom type="sphere" size="0.01"/></body>
</body></body></worldbody></mujoco>"""
URDF = """<robot name="arm"><link name="root"/>
<link name="upper"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>
<collision><geometry><mesh filename="package://arm/meshes/gone.stl"/></geometry></collision></link>
<joint name="base" type="revolute"><parent link="root"/><child link="upper"/><origin xyz="0 0 1"/><axis xyz="0 1 0"/>
<limit lower="-2" upper="2" effort="1" velocity="1"/></joint>
<link name="lower"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>
<collision><geometry><sphere radius="0.05"/></geometry></collision></link>
<joint name="shoulder" type="revolute"><parent link="upper"/><child link="lower"/><origin xyz="0.5 0 0"/>
<axis xyz="0 1 0"/><limit lower="-2" upper="2" effort="1" velocity="1"/></joint></robot>"""


def test_links_are_where_trigonometry_says(tmp_path, toy: Embodiment):
    pytest.importorskip("mujoco")
    from athena_vla.view import posed

    (tmp_path / "arm.xml").write_text(ARM)
    body = posed.body_of(toy, tmp_path / "arm.xml")
    assert body is not None
    episode = clean(0)
    found = body.posed(timeline_of(episode, toy, (), ())).posed
    assert found is not None
    assert [(link.name, link.parent) for link in found.links] == [("upper", -1), ("lower", 0), ("tip", 1)]
    assert [[s.kind for s in link.shapes] for link in found.links] == [["capsule"], ["box"], ["ellipsoid"]]
    base, shoulder, finger = np.asarray(episode.states, np.float64).T
    along = np.stack([np.cos(base), 0 * base, -np.sin(base)], axis=1)  # a turn about +y takes x to -z
    beyond = np.stack([np.cos(base + shoulder), 0 * base, -np.sin(base + shoulder)], axis=1)
    lower = np.array([0, 0, 1]) + 0.5 * along
    np.testing.assert_allclose(found.positions[:, 1], lower, atol=1e-6)
    np.testing.assert_allclose(found.positions[:, 2], lower + (0.2 + finger)[:, None] * beyond, atol=1e-6)
    half = (base + shoulder) / 2
    turned = np.stack([np.cos(half), 0 * half, np.sin(half), 0 * half], axis=1)
    np.testing.assert_allclose(np.abs((found.rotations[:, 1] * turned).sum(axis=1)), 1.0, atol=1e-6)


def test_a_urdf_needs_no_meshes_and_says_what_did_not_move(tmp_path, toy: Embodiment):
    pytest.importorskip("mujoco")
    from athena_vla.view import posed

    (tmp_path / "arm.urdf").write_text(URDF)
    body = posed.body_of(toy, tmp_path / "arm.urdf")
    assert body is not None
    episode = clean(0)
    found = body.posed(timeline_of(episode, toy, (), ())).posed
    assert found is not None
    place = [link.name for link in found.links].index("lower")
    base = np.asarray(episode.states[:, 0], np.float64)
    np.testing.assert_allclose(found.positions[:, place, 0], 0.5 * np.cos(base), atol=1e-6)
    np.testing.assert_allclose(found.positions[:, place, 2], 1 - 0.5 * np.sin(base), atol=1e-6)
    other = replace(episode, joint_names=("a", "b", "c"), state_names=("a", "b", "c"))
    bare = body.posed(timeline_of(other, None, (), ()))
    assert bare.posed is None
    assert "not one of its joints" in bare.notes[-1]
    (tmp_path / "arm.urdf").write_text("<robot><nonsense")
    with pytest.raises(ViewError, match="MuJoCo cannot read"):
        posed.body_of(toy, tmp_path / "arm.urdf")


@pytest.mark.parametrize("fps", [10.0, 30.0])
def test_a_chunk_is_the_policys_answer_on_the_rows_that_it_predicts(tmp_path, toy: Embodiment, fps: float):
    """At 30 Hz the chunk row r of control step k lies over recorded row (k + 1 + r) * 3 - 1, at 10 Hz over k + r."""
    pytest.importorskip("torch")
    from athena_vla.policy import Policy
    from athena_vla.view.predicted_chunks import Predictions
    from small_bundles import write_base

    write_base(tmp_path / "base", toy)
    episode = clean(0, length=60, fps=fps)
    timeline = Predictions(tmp_path / "base").added(timeline_of(episode, toy, (), ()), episode, 4)
    ratio = round(fps / toy.control_hz)
    count = 60 // ratio
    asked = sorted({round(x) for x in np.linspace(0, count - 2, 4)})
    assert len(timeline.predicted) == len(asked) == 4
    policy = Policy.load(tmp_path / "base")
    for chunk, step in zip(timeline.predicted, asked, strict=True):
        row = step * ratio
        seen = Observation({"front": episode.cameras["front"][row]}, episode.states[row], episode.instructions[0])
        np.testing.assert_allclose(chunk.positions, policy.act(seen).positions, atol=1e-6)
        assert chunk.asked == pytest.approx(row / fps)
        rows = (step + 1 + np.arange(len(chunk.positions))) * ratio - 1
        inside = rows < 60
        np.testing.assert_allclose(chunk.times[inside], rows[inside] / fps, atol=1e-9)
        assert (np.diff(chunk.times) > 0).all()
        assert chunk.names == episode.joint_names


def test_a_policy_for_another_robot_is_refused(tmp_path, toy: Embodiment):
    pytest.importorskip("torch")
    from recordings import write
    from small_bundles import write_base

    write_base(tmp_path / "base", toy)
    other = ("left", "right", "middle")
    write(tmp_path / "rec", replace(clean(0), joint_names=other, state_names=other))
    with pytest.raises(DatasetError, match=r"no action column.*'toy'"):
        view(ViewConfig(input=tmp_path / "rec", out=tmp_path / "out", show="pages", policy=tmp_path / "base"))
    with pytest.raises(ViewError, match=r"Policy .* is for robot 'toy'.*'athena'"):
        view(
            ViewConfig(
                input=tmp_path / "rec", out=tmp_path / "out", show="pages", policy=tmp_path / "base", robot="athena"
            )
        )
    write(tmp_path / "good", clean(0))
    view(ViewConfig(input=tmp_path / "good", out=tmp_path / "out", show="pages", policy=tmp_path / "base", chunks=3))
    text = next((tmp_path / "out").glob("0000*")).read_text()
    assert text.count('<polyline class="predicted"') == 3 * 3
    assert "limits -1.5 … 1.5" in text  # the policy's robot is the recording's
