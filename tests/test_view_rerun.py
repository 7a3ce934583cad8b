"""What `athena data view --save` writes for Rerun, read back by Rerun's own reader and compared with h5py's numbers."""
# Rerun is an extra, and what it reads is a table without types.
# pyright: reportAttributeAccessIssue=false

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image as PillowImage

from athena_vla.errors import ViewError
from athena_vla.view import ViewConfig, view
from view_pages import JOINTS, LENGTH, RATE, demonstrations

chunks = pytest.importorskip("rerun.chunk", reason="rerun-sdk is not installed: pip install 'athena-vla[view]'")

LIMITS = {"base": (-1.5, 1.5), "shoulder": (-1.0, 1.2), "finger": (-0.2, 0.8)}  # of the toy robot's file


class Saved:
    """Rows of an .rrd file by entity."""

    def __init__(self, path: Path) -> None:
        reader = chunks.RrdReader(path)
        assert len(reader.recordings()) == 1
        assert len(reader.blueprints()) == 1
        self.chunks = list(reader.stream())

    def rows(self, entity: str, component: str) -> tuple[np.ndarray[Any, Any], list[Any]]:
        """Seconds and values of a component, in the order of time."""
        times, values = [], []
        for chunk in self.chunks:
            batch = chunk.to_record_batch()
            if chunk.entity_path == entity and component in batch.schema.names and not chunk.is_static:
                times += [t.total_seconds() for t in batch.column("time").to_pylist()]
                values += batch.column(component).to_pylist()
        order = np.argsort(times, kind="stable")
        return np.array(times)[order], [values[i] for i in order]

    @property
    def entities(self) -> set[str]:
        return {c.entity_path for c in self.chunks}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return demonstrations(tmp_path_factory.mktemp("view") / "demos.hdf5")


@pytest.fixture(scope="module")
def saved(file) -> Saved:
    path = file.parent / "one.rrd"
    done = view(ViewConfig(input=file, save=path, robot="toy", fps=RATE, episodes=("demo_1",)))
    assert done.written == (path,)
    return Saved(path)


def test_curves_and_limits_are_those_of_the_files(file, saved):
    with h5py.File(file) as raw:
        recorded = {"target": raw["data/demo_1/actions"][()], "state": raw["data/demo_1/obs/robot0_joint_pos"][()]}
    for kind, values in recorded.items():
        for k, name in enumerate(JOINTS):
            times, found = saved.rows(f"/{kind}/{name}", "Scalars:scalars")
            np.testing.assert_allclose(times, np.arange(LENGTH) / RATE, atol=1e-6)
            np.testing.assert_allclose(np.concatenate(found), values[:, k], atol=1e-7)
    for name, bounds in LIMITS.items():
        for side, bound in zip(("lower", "upper"), bounds, strict=True):
            times, found = saved.rows(f"/limits/{name}/{side}", "Scalars:scalars")
            assert times.tolist() == [0.0, pytest.approx(LENGTH / RATE)]
            np.testing.assert_allclose(np.concatenate(found), [bound, bound])


def test_every_image_is_at_its_time(saved):
    times, images = saved.rows("/world/cameras/front_image", "EncodedImage:blob")
    np.testing.assert_allclose(times, np.arange(LENGTH) / RATE, atol=1e-6)
    for frame in (0, 11, LENGTH - 1):
        encoded = bytes(np.asarray(images[frame]).ravel().astype(np.uint8).tolist())
        assert np.asarray(PillowImage.open(io.BytesIO(encoded))).mean() == pytest.approx(5 * frame, abs=2)


def test_what_is_found_is_said_at_its_frames(tmp_path):
    """The recorder's camera stands still while the robot moves: frames that the check names, at their seconds."""
    path = demonstrations(tmp_path / "a.hdf5", count=1)
    with h5py.File(path, "a") as raw:
        raw["data/demo_0/actions"][20, 0] += 2.0
    view(ViewConfig(input=path, save=tmp_path / "a.rrd", robot="toy", fps=RATE, checks="episodes"))
    found = Saved(tmp_path / "a.rrd")
    times, texts = found.rows("/said/finding", "TextLog:text")
    jumps = [(t, str(x)) for t, x in zip(times, texts, strict=True) if "joint.limits" in str(x) or "jump" in str(x)]
    assert jumps, texts
    assert all(1.7 <= t <= 2.1 for t, _ in jumps), jumps


def test_links_of_the_robot_are_posed(tmp_path):
    pytest.importorskip("mujoco")
    from test_view_body import ARM

    path = demonstrations(tmp_path / "a.hdf5", count=2)
    (tmp_path / "arm.xml").write_text(ARM)
    asked = ViewConfig(input=path, save=tmp_path / "a.rrd", robot="toy", fps=RATE, model=tmp_path / "arm.xml")
    done = view(asked)
    assert [p.name for p in done.written] == ["a-demo_0.rrd", "a-demo_1.rrd"]
    with h5py.File(path) as raw:
        base = raw["data/demo_0/obs/robot0_joint_pos"][:, 0]
    saved = Saved(tmp_path / "a-demo_0.rrd")
    _, places = saved.rows("/world/robot/lower", "Transform3D:translation")
    expected = np.stack([0.5 * np.cos(base), 0 * base, 1 - 0.5 * np.sin(base)], axis=1)
    np.testing.assert_allclose(np.concatenate(places), expected, atol=1e-5)
    assert {f"/world/robot/{n}/shape_0" for n in ("upper", "lower", "tip")} <= saved.entities
    with pytest.raises(ViewError, match="--overwrite"):
        view(asked)


def test_chunks_of_a_policy_lie_beside_the_targets(tmp_path, toy):
    pytest.importorskip("torch")
    from athena_vla.embodiment import Observation
    from athena_vla.policy import Policy
    from recordings import clean, write
    from small_bundles import write_base

    write_base(tmp_path / "base", toy)
    episode = clean(0)
    write(tmp_path / "rec", episode)
    view(ViewConfig(input=tmp_path / "rec", save=tmp_path / "a.rrd", policy=tmp_path / "base", chunks=2))
    saved = Saved(tmp_path / "a.rrd")
    asked = Observation({"front": episode.cameras["front"][58]}, episode.states[58], episode.instructions[0])
    answer = Policy.load(tmp_path / "base").act(asked).positions
    times, found = saved.rows("/predicted/shoulder/1", "Scalars:scalars")
    np.testing.assert_allclose(np.concatenate(found), answer[:, 1], atol=1e-5)
    np.testing.assert_allclose(times, 5.8 + np.arange(len(answer)) / 10, atol=1e-6)


def test_without_a_screen_the_viewer_is_not_waited_for(file, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ViewError, match=r"no screen.*--save"):
        view(ViewConfig(input=file, show="rerun", fps=RATE))
