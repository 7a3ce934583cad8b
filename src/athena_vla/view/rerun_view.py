"""A timeline in Rerun: images, curves, limits, chunks, spans and the robot's links on one clock, with a layout.

Entities: world/cameras/NAME, world/robot/LINK, state/COLUMN, target/COLUMN, limits/COLUMN, predicted/COLUMN/NUMBER,
said/KIND for spans and findings. The clock `time` is in seconds since the first frame; `frame` counts frames.
"""
# rerun-sdk is an extra, and its classes are made from a description: their members are Any here.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import files
from athena_vla.errors import AthenaError, MissingDependency, ViewError
from athena_vla.view.column_plots import scale_of
from athena_vla.view.small_images import jpeg
from athena_vla.view.timeline import CameraTrack, Column, Curve, Posed, Shape, Timeline

try:
    import rerun
    import rerun.blueprint as layout
except ModuleNotFoundError as error:  # the caller goes on without, or says what is missing
    raise MissingDependency("rerun-sdk", "view", "to show recordings in Rerun") from error

TIME, FRAME = "time", "frame"
APPLICATION = "athena data view"
MEASURED = "measured only"
INSTEAD = "--save FILE.rrd writes a file for it, and --show pages needs no viewer."
STATE_COLOUR, TARGET_COLOUR, LIMIT_COLOUR, CHUNK_COLOUR = (213, 63, 140), (43, 108, 176), (229, 62, 62), (221, 107, 32)
LEVELS = {"error": "ERROR", "warning": "WARN", "info": "INFO"}


def save(path: Path, timeline: Timeline, width: int) -> Path:
    """Write an episode into a file that the viewer opens, whole or not at all."""
    with files.whole_file(path, ViewError) as temporary:
        stream = _stream(timeline)
        stream.save(str(temporary), default_blueprint=_blueprint(timeline))
        _log(stream, timeline, width)
        stream.flush()
        stream.disconnect()
    return path


def show(timelines: Iterable[Timeline], width: int) -> None:
    """Open the viewer with all of the episodes, one recording each."""
    for number, timeline in enumerate(timelines):
        stream = _stream(timeline)
        blueprint = _blueprint(timeline)
        if number == 0:
            try:
                stream.spawn(default_blueprint=blueprint)
            except RuntimeError as error:  # such as a viewer that is not on the PATH
                first = str(error).strip().splitlines()[0].rstrip(".")
                raise ViewError(f"The Rerun viewer cannot be opened: {first}. {INSTEAD}") from error
        else:
            stream.connect_grpc(default_blueprint=blueprint)
        _log(stream, timeline, width)
        stream.flush()


def _stream(timeline: Timeline) -> Any:
    stream = rerun.RecordingStream(APPLICATION)
    stream.set_log_time_enabled(False)  # when it was drawn is of no interest
    stream.set_log_tick_enabled(False)
    stream.send_recording_name(f"episode {timeline.id}")
    return stream


def _log(stream: Any, timeline: Timeline, width: int) -> None:
    stream.log("episode", rerun.TextDocument(_about(timeline), media_type="text/markdown"), static=True)
    stream.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    for column in timeline.columns:
        _log_column(stream, column, timeline)
    for camera in timeline.cameras:
        _log_camera(stream, camera, width)
    for number, chunk in enumerate(timeline.predicted):
        for name, values in zip(chunk.names, chunk.positions.T, strict=True):
            _log_curve(stream, _path("predicted", name, str(number)), Curve(chunk.times, values), None, CHUNK_COLOUR)
    for span in timeline.spans:
        _at(stream, span.start, span.first)
        text = f"{span.label}: {span.text} [{span.first}:{span.stop}]"
        stream.log(f"said/{span.kind}", rerun.TextLog(text, level=LEVELS[span.severity]))
    for remark in timeline.remarks:
        _at(stream, 0.0, 0)
        stream.log("said/episode", rerun.TextLog(f"{remark.code}: {remark.text}", level=LEVELS[remark.severity]))
    if timeline.posed is not None:
        _log_links(stream, timeline.posed, timeline)


def _log_column(stream: Any, column: Column, timeline: Timeline) -> None:
    for kind, curve, colour in (("state", column.state, STATE_COLOUR), ("target", column.target, TARGET_COLOUR)):
        if curve is not None:
            frames = np.arange(len(timeline)) if curve.times is timeline.times else None
            _log_curve(stream, _path(kind, column.name), curve, frames, colour)
    if column.limits is not None and len(timeline):
        bounds = Curve(np.array([0.0, timeline.duration]), np.zeros(2))
        for side, value in zip(("lower", "upper"), column.limits, strict=True):
            path = _path("limits", column.name, side)
            _log_curve(stream, path, Curve(bounds.times, np.full(2, value)), None, LIMIT_COLOUR)


def _log_curve(
    stream: Any, path: str, curve: Curve, frames: "np.ndarray[Any, Any] | None", colour: tuple[int, int, int]
) -> None:
    indexes = [rerun.TimeColumn(TIME, duration=curve.times)]
    if frames is not None:
        indexes.append(rerun.TimeColumn(FRAME, sequence=frames))
    stream.log(path, rerun.SeriesLines(colors=colour, names=path), static=True)
    stream.send_columns(path, indexes, rerun.Scalars.columns(scalars=np.asarray(curve.values, np.float64)))


def _log_camera(stream: Any, camera: CameraTrack, width: int) -> None:
    path = _path("world", "cameras", camera.name)
    for place, seconds in enumerate(camera.times):
        _at(stream, float(seconds), place)
        try:
            image = jpeg(camera.frames[place], width)
        except AthenaError as error:
            stream.log("said/camera", rerun.TextLog(f"{camera.name} [{place}]: {error}", level="ERROR"))
            continue
        stream.log(path, rerun.EncodedImage(contents=image, media_type="image/jpeg"))


def _log_links(stream: Any, posed: Posed, timeline: Timeline) -> None:
    indexes = [
        rerun.TimeColumn(TIME, duration=timeline.times),
        rerun.TimeColumn(FRAME, sequence=np.arange(len(timeline))),
    ]
    for place, link in enumerate(posed.links):
        path = _path("world", "robot", link.name)
        wxyz = posed.rotations[:, place]
        columns = rerun.Transform3D.columns(translation=posed.positions[:, place], quaternion=wxyz[:, [1, 2, 3, 0]])
        stream.send_columns(path, indexes, columns)
        for number, shape in enumerate(link.shapes):
            stream.log(f"{path}/shape_{number}", _solid(shape), static=True)


def _solid(shape: Shape) -> Any:
    w, x, y, z = shape.rotation
    placed = {"quaternions": [[x, y, z, w]], "colors": [[round(255 * c) for c in shape.colour]]}
    a, b, _ = shape.size
    if shape.kind == "box":
        return rerun.Boxes3D(half_sizes=[shape.size], centers=[shape.position], fill_mode="solid", **placed)
    if shape.kind == "ellipsoid":
        return rerun.Ellipsoids3D(half_sizes=[shape.size], centers=[shape.position], fill_mode="solid", **placed)
    if shape.kind == "cylinder":
        return rerun.Cylinders3D(radii=[a], lengths=[2 * b], centers=[shape.position], fill_mode="solid", **placed)
    # A capsule begins at its own origin, a MuJoCo capsule is centred: the middle goes half a length down its axis.
    axis = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    start = np.asarray(shape.position) - b * axis
    return rerun.Capsules3D(radii=[a], lengths=[2 * b], translations=[start], fill_mode="solid", **placed)


def _blueprint(timeline: Timeline) -> Any:
    """Cameras and robot on the left, curves by group on the right, what is said below."""
    views = [layout.Spatial2DView(origin=_path("world", "cameras", c.name), name=c.name) for c in timeline.cameras]
    if timeline.posed is not None:
        views.append(layout.Spatial3DView(origin="world", contents="world/robot/**", name="robot"))
    is_commanded = any(c.target is not None for c in timeline.columns)
    tabs: dict[str, list[Any]] = {}  # what is only measured, such as velocities, comes last
    for column in sorted(timeline.columns, key=lambda c: is_commanded and c.target is None):
        name = MEASURED if is_commanded and column.target is None else column.group
        tabs.setdefault(name, []).append(_plot(column, timeline))
    groups = [layout.Grid(*plots, name=name) for name, plots in tabs.items()]
    said = layout.TextLogView(origin="said", name="said and found")
    about = layout.TextDocumentView(origin="episode", name="episode")
    right = layout.Vertical(layout.Tabs(*groups), layout.Tabs(said, about), row_shares=[3, 1])
    left = [layout.Vertical(*views)] if views else []
    main = layout.Horizontal(*left, right, column_shares=[1, 2] if left else [1])
    return layout.Blueprint(main, layout.TimePanel(timeline=TIME), collapse_panels=True)


def _plot(column: Column, timeline: Timeline) -> Any:
    """One column; limits that are far away are above or below what is seen at first."""
    kinds = ("state", "target", "limits", "predicted")
    return layout.TimeSeriesView(
        origin="/",
        contents=[f"{_path(kind, column.name)}/**" for kind in kinds],
        name=f"{column.name} [{column.unit}]" if column.unit else column.name,
        axis_y=layout.ScalarAxis(range=scale_of(column, timeline)),
        plot_legend=layout.PlotLegend(visible=False),
    )


def _about(timeline: Timeline) -> str:
    """What a person reads of the episode; a recorded text is shown as code, so that it is not read as markup."""
    lines = [
        f"# Episode {_code(timeline.id)}",
        f"robot: {_code(timeline.robot or 'not named')}",
        "target blue, state pink, limits red, chunks of the policy orange",
    ]
    lines += [f"- {_code(t)}" for t in timeline.instructions]
    return "\n\n".join([*lines, *(f"note: {_code(n)}" for n in timeline.notes)])


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _at(stream: Any, seconds: float, frame: int) -> None:
    stream.set_time(TIME, duration=seconds)
    stream.set_time(FRAME, sequence=frame)


def _path(*parts: str) -> str:
    return rerun.new_entity_path(list(parts)).removeprefix("/")
