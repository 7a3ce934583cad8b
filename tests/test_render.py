"""The ray caster against MuJoCo's own exact rays, the pinhole camera, and the colours that a policy must tell apart."""

import mujoco
import numpy as np
import pytest

from athena_vla.errors import SimulationError, UnknownName
from athena_vla.sim import render
from athena_vla.sim.grounding import locate, random_pose, render_grounding
from athena_vla.sim.raycast import FAR, NOTHING, cast_camera
from athena_vla.sim.render import RayRenderer, best_renderer, make_renderer, probe
from athena_vla.sim.scene import COLOURS, SHAPES
from athena_vla.sim.tasks import sample_scene
from athena_vla.sim.world import THIRD_PERSON, World


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize("camera", ["head", THIRD_PERSON])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_pixel_meets_what_mj_ray_meets(world, camera, seed):
    """Geom, distance and normal of every pixel equal MuJoCo's slow exact ray, in random poses."""
    world.reset(sample_scene(seed, "base"))
    world.set_pose(random_pose(world.embodiment, np.random.default_rng(seed)))
    size = 40
    cast = RayRenderer(world.model).cast(world.data, camera, size, size)
    shown = np.array([1, 1, 1, 1, 0, 0], dtype=np.uint8)  # without the floor, which MuJoCo ends after a few metres
    floor = world.model.geom("floor").id
    met = 0
    for i in range(size):
        for j in range(size):
            ray = cast.rotation @ cast.rays[:, i, j]
            found, normal = np.array([-1], dtype=np.int32), np.zeros(3)
            distance = mujoco.mj_ray(world.model, world.data, cast.origin, ray, shown, True, -1, found, normal)
            down = -cast.origin[2] / ray[2] if ray[2] < 0 else np.inf
            if found[0] == NOTHING or down < distance:
                assert cast.geoms[i, j] == (floor if down < FAR else NOTHING)
                continue
            met += 1
            assert cast.geoms[i, j] == found[0]
            assert cast.distance[i, j] == pytest.approx(distance, abs=1e-9)
            assert cast.rotation @ cast.normals[:, i, j] == pytest.approx(normal, abs=1e-6)
    assert met > 200


def test_windows_lose_nothing(world):
    """Casting a geom alone finds the same pixels as casting all: no window is too small, not even at odd sizes."""
    world.reset(sample_scene(11, "train"))
    renderer = RayRenderer(world.model)
    head = world.model.camera("head").id
    whole = renderer.cast(world.data, "head", 37, 53)
    floor = world.model.geom("floor").id
    for geom in np.unique(whole.geoms[whole.geoms >= 0]):
        if geom == floor:
            continue
        alone = cast_camera(world.model, world.data, head, 37, 53, np.array([geom]), floor)
        assert (alone.geoms[whole.geoms == geom] == geom).all()


def test_pixels_of_objects_are_where_the_pinhole_camera_puts_them(world):
    scene = sample_scene(12, "base")
    world.reset(scene)
    renderer = RayRenderer(world.model)
    batch = locate(world, renderer, scene, 96)
    segments = renderer.cast(world.data, "head", 96, 96).geoms
    for k, geom in enumerate(world.object_geoms):
        rows, columns = np.nonzero(segments == geom)
        assert len(rows) == batch.visible[0, k] > 30
        middle = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / 96
        assert batch.pixels[0, k] == pytest.approx(middle, abs=1.5 / 96)
    assert batch.names(0) == tuple(o.name for o in scene.objects)


def test_depth_is_along_the_optical_axis(world):
    world.reset(sample_scene(13, "train"))
    cast = RayRenderer(world.model).cast(world.data, "head", 48, 48)
    axis = -cast.rotation[:, 2]
    seen = cast.geoms != NOTHING
    assert cast.depth[seen] == pytest.approx(((cast.points - cast.origin) @ axis)[seen])


def test_colours_stay_apart_at_the_demo_size(world):
    """At 96 px, under every light, an object's mean colour is nearest to its own name's."""
    renderer = RayRenderer(world.model)
    names = list(COLOURS)
    palette = np.array([COLOURS[n] for n in names])
    palette = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    right, pixels = 0, []
    for seed in range(60):
        scene = sample_scene(seed, "test")
        world.reset(scene)
        cast = renderer.cast(world.data, "head", 96, 96)
        image = renderer.shade(world.data, cast, scene.appearance).astype(float)
        for item, geom in zip(scene.objects, world.object_geoms, strict=True):
            own = image[cast.geoms == geom]
            pixels.append(len(own))
            mean = own.mean(axis=0)
            right += names[int(np.argmax(palette @ (mean / np.linalg.norm(mean))))] == item.colour
    assert min(pixels) >= 25
    assert right == 180


def test_pictures_are_deterministic_and_change_with_the_scene(world):
    renderer = RayRenderer(world.model)
    pictures = []
    for seed in (1, 2, 1):
        scene = sample_scene(seed, "train")
        world.reset(scene)
        pictures.append(renderer.render(world.data, "head", 32, 32, scene.appearance))
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
    assert pictures[0].dtype == np.uint8
    assert pictures[0].shape == (32, 32, 3)


def test_shadows_only_darken(world):
    scene = sample_scene(3, "train")
    world.reset(scene)
    plain = RayRenderer(world.model).render(world.data, THIRD_PERSON, 48, 64, scene.appearance)
    shaded = RayRenderer(world.model, shadows=True).render(world.data, THIRD_PERSON, 48, 64, scene.appearance)
    assert (shaded <= plain).all()
    assert (shaded < plain).mean() > 0.02


def test_unknown_and_impossible_renderers_are_named(world, monkeypatch):
    with pytest.raises(UnknownName, match="auto, rays, egl, osmesa"):
        make_renderer("vulkan", world.model)
    monkeypatch.setattr(render, "probe", lambda backend: False)
    with pytest.raises(SimulationError, match="Use renderer 'rays'"):
        make_renderer("egl", world.model)
    mesh = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='ellipsoid' size='.1 .2 .3'/></worldbody></mujoco>"
    )
    with pytest.raises(SimulationError, match="No renderer works here"):
        best_renderer(mesh)
    assert best_renderer(world.model) == "rays"


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_opengl_shows_the_same_scene_as_the_rays(backend):
    """Where OpenGL works, both renderers agree on what is where; lights differ."""
    if not probe(backend):
        pytest.skip(f"no {backend} context can be made on this machine")
    world = World()
    scene = sample_scene(5, "train")
    world.reset(scene)
    ours = make_renderer("rays", world.model).render(world.data, "head", 96, 96, scene.appearance).astype(float)
    theirs = make_renderer(backend, world.model).render(world.data, "head", 96, 96, scene.appearance).astype(float)
    objects = np.isin(RayRenderer(world.model).cast(world.data, "head", 96, 96).geoms, world.object_geoms)
    assert objects.sum() > 90
    unit = [p[objects] / np.linalg.norm(p[objects], axis=1, keepdims=True) for p in (ours, theirs)]
    assert np.median((unit[0] * unit[1]).sum(axis=1)) > 0.97


def test_grounding_is_the_same_for_any_batch_size():
    whole = next(iter(render_grounding(6, seed=3, workers=1, size=32, batch=6)))
    parts = list(render_grounding(6, seed=3, workers=1, size=32, batch=4))
    assert [len(p) for p in parts] == [4, 2]
    for name in ("images", "states", "colours", "shapes", "pixels", "positions", "visible"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts])), name
    assert whole.colours.max() < len(COLOURS)
    assert whole.shapes.max() < len(SHAPES)
    assert len(np.unique(whole.images.reshape(6, -1), axis=0)) == 6
