"""The report page: made from a small run folder, complete, escaped, self-contained; and opened in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athena_vla import files
from athena_vla.demo.journal import plain
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.baselines import BlackImage, HoldStill
from athena_vla.evaluate.openloop import open_loop
from athena_vla.evaluate.results import EpisodeResult
from athena_vla.evaluate.summary import compare_pair, summarise
from athena_vla.recordings.episode import Sample
from athena_vla.report import ReportConfig, charts, evidence, figures, names, report
from athena_vla.report import embedded_media as media
from athena_vla.report.assemble import environment, load

TASKS = ("look", "point", "raise", "touch")
SHARES = {
    "tuned": 0.95,
    "untuned": 0.1,
    "hold": 0.0,
    "mean_action": 0.05,
    "tuned.black_image": 0.1,
    "tuned.other_instruction": 0.2,
    "int8": 0.93,
    "int4": 0.9,
    "hostile": 0.0,
}


def episodes(actor: str, count: int) -> list[EpisodeResult]:
    generator = np.random.default_rng(len(actor))
    rows = []
    for scene in range(count):
        won = bool(generator.random() < SHARES[actor])
        touched = 30 if actor == "hostile" else int(scene % 20 == 0)
        table = {"velocity": {"waist_yaw": touched}} if touched else {}
        rows.append(
            EpisodeResult(
                actor, scene, TASKS[scene % 4], "touch it", won, 2.5 if won else None, 600, touched,
                {"velocity": touched} if touched else {}, table, 0, 0.7, 0.99, (), {"total": 1, "per_act": 0.004},
                *(("", None, "") if won else (("short of the goal", "another object")[scene % 2], 0.012, "m")),
            )
        )  # fmt: skip
    return rows


class Near:
    """The truth, nearly: what it sees decides by how much it is off."""

    def __init__(self, robot: Embodiment, off: float) -> None:
        self.robot, self.off = robot, off

    def act(self, observation: Observation, /) -> ActionChunk:
        light = float(observation.images["front"].mean()) / 2550
        rows = np.tile(observation.state, (8, 1)) + self.off * np.arange(1, 9)[:, None] + light
        return ActionChunk(rows, self.robot.action_joints, 0.1)


def open_loop_table(toy: Embodiment) -> Any:
    generator = np.random.default_rng(0)
    samples = []
    for e in range(5):
        for f in range(4):
            state = generator.normal(0, 0.3, 3)
            picture = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            chunk = (state + 0.02 * np.arange(1, 9)[:, None]).astype(np.float32)
            samples.append(
                Sample(Observation({"front": picture}, state, TASKS[e % 4]), chunk, np.ones(8, bool), str(e), f)
            )
    tuned = Near(toy, 0.021)
    actors = {
        "tuned": tuned,
        "untuned": Near(toy, 0.1),
        "hold": HoldStill(toy, remember=False),
        "tuned.black_image": BlackImage(tuned),
    }
    return open_loop(actors, samples, toy, ablation_of={"tuned.black_image": "tuned"})


def picture(height: int, width: int, seed: int) -> np.ndarray:
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    image = np.repeat(np.tile(ramp, (height, 1))[..., None], 3, axis=2).copy()
    image[height // 3 : height // 2, (7 * seed) % (width // 2) :] = (20, 120, 160)
    return image


def animated(folder: Path, name: str) -> dict[str, Any]:
    frames = [picture(120, 260, i) for i in range(6)]
    files.write_bytes(folder / f"{name}.webp", media.animation(frames, 8))
    files.write_bytes(folder / f"{name}-still.webp", media.still(frames[-1]))
    return {"file": f"{name}.webp", "still": f"{name}-still.webp", "size": [260, 120], "success": True, "seconds": 2.5}


def strip(folder: Path, name: str) -> dict[str, Any]:
    files.write_bytes(folder / name, media.still(media.beside([picture(90, 90, i) for i in range(6)])))
    return {"file": name, "size": [560, 90]}


def graph_stage(ms: float) -> dict[str, float]:
    return {"p50_ms": ms, "p95_ms": 1.3 * ms, "mean_ms": 1.05 * ms}


def bench_record(ms: float) -> dict[str, Any]:
    stages = {
        n: graph_stage(s * ms) for n, s in (("preprocess", 0.1), ("vision", 0.4), ("language", 0.45), ("safety", 0.05))
    }
    return {
        "summary": {
            "kind": "measured_here", "action_ms": ms, "actions_per_second": 8000 / ms, "chunks_per_second": 1000 / ms,
            "tokens_per_second": 184_000 / ms,
        },
        "whole_action": graph_stage(ms),
        "stages": stages,
        "device": {"model": "Test processor 2x", "cores": 2, "memory_gb": 24.0},
    }  # fmt: skip


def prediction() -> dict[str, Any]:
    return {
        "kind": "predicted",
        "parameters": 7.5e9,
        "prediction": {
            "label": "Jetson Orin NX 16GB", "precision": "int4", "actions_per_second": [15.0, 22.0],
            "action_seconds": [0.72, 1.05], "memory_gb": {"weights_gb": 4.2, "system_gb": 3.0}, "fits": True,
            "source": "published performance pages",
            "stages": [
                {"graph": "vision", "calls": 1, "seconds": [0.05, 0.07], "bound": "arithmetic"},
                {"graph": "language", "calls": 1, "seconds": [0.6, 0.9], "bound": "bandwidth"},
            ],
        },
    }  # fmt: skip


def make_run(folder: Path, toy: Embodiment, *, simulated: bool, instruction: str = "touch the red cube") -> Path:
    """A run folder as the demo leaves it, filled by the real functions where there are some."""
    played = {n: episodes(n, 40) for n in SHARES}
    closed = {n: plain(summarise(played[n])) for n in SHARES}
    won = {n: {e.scene: e.success for e in rows} for n, rows in played.items()}
    shown = folder / "media"
    film = {"scene": 3, "task": "touch", "instruction": instruction}
    compared: dict[str, Any] = {
        "closed_loop": {n: closed[n] for n in SHARES if n not in ("int8", "int4", "hostile")} if simulated else {},
        "paired": {n: plain(compare_pair(won["tuned"], won[n])) for n in SHARES if n not in ("tuned", "int8", "int4")},
        "open_loop": plain(open_loop_table(toy)),
        "notes": ["'untuned' is untuned: the base model before any fine-tuning."],
        "films": [{**film, "tuned": animated(shown, "a"), "untuned": {**animated(shown, "b"), "success": False}}],
    }
    if not simulated:
        compared |= {"films": [], "paired": {}}
    errors = {
        "mean_rad": 1e-3,
        "p95_rad": 4e-3,
        "max_rad": 0.02,
        "per_joint_p95": dict.fromkeys(toy.action_joints, 3e-3),
    }
    exported = {"bytes": 4_000_000, "hash": "0123456789abcdef", "deviation": {"max_rad": 2e-6}, "graphs": {}}
    made = {"mean_bits": 4.6}
    sheet = {"instruction": instruction, "seconds": 3.1, "episode": "0"}
    sheets = [{**strip(shown, f"r{i}.webp"), **sheet, "success": i != 2} for i in range(4)]
    piece = {"start": 0.0, "stop": 2.0, "kind": "prepare", "text": "get ready"}
    steps: dict[str, Any] = {
        "prepare": {
            "hash": "feedbeef",
            "check": {"findings": [{"code": "clock.gap", "severity": "warning", "count": 2, "messages": ["x"]}]},
            "build": {"train_episodes": ["0"], "validation_episodes": ["1"], "failed": {}, "broken": {}, "samples": 99,
                "episodes": 2,
            },
            "timeline": {
                "episode": "0",
                "instruction": instruction,
                "seconds": 3.1,
                "rows": {"simulator": [piece, {**piece, "start": 2.0, "stop": 3.1, "kind": "manipulate", "text": ""}]},
                "frames": strip(shown, "t.webp"),
            },
            **({} if simulated else {"sheets": sheets}),
        },
        "train": {
            "base": "builtin:base", "base_hash": "aa", "hash": "bb", "batch": 64,
            "curves": {
                "train": [[float(i), 0.5 / (1 + i / 20) + 0.01 * (i % 3)] for i in range(0, 200, 5)],
                "validation": [[100.0, 0.1], [200.0, 0.06]],
            },
            "summary": {
                "steps": 200, "trainable": 120_000, "total": 1_600_000, "samples_per_second": 280.0,
                "validation": {"mae_rad": 0.02, "per_joint_rad": dict.fromkeys(toy.action_joints, 0.01)},
            },
        },
        "compare": compared,
        "deploy": {
            "export": dict.fromkeys(("float", "int8", "int4"), exported),
            "quantize": dict.fromkeys(("int8", "int4"), made),
            "action_error": dict.fromkeys(("float", "int8", "int4"), errors),
            **(
                {
                    "closed_loop": {n: closed[n] for n in ("int8", "int4")},
                    "paired": {n: plain(compare_pair(won[n], won["tuned"])) for n in ("int8", "int4")},
                }
                if simulated
                else {}
            ),
        },
        "bench": {
            "records": {n: bench_record(m) for n, m in (("float", 9), ("int8", 6), ("int4", 7))},
            "predicted": prediction(),
        },
    }  # fmt: skip
    if simulated:
        steps["record"] = {
            "episodes": 40,
            "frames": 1300,
            "frames_per_second": 210.0,
            "failed_on_purpose": 2,
            "sheets": sheets,
        }
        steps["safety"] = {"hostile": closed["hostile"]}
        steps["serve"] = {
            "success": True, "instruction": instruction, "asked": 9, "median_seconds": 0.008, "p95_seconds": 0.01,
            "commands": 700, "touched": 0, "violations": 0, "server": {"bundle_hash": "cc"},
        }  # fmt: skip
    for name, result in steps.items():
        content = {
            "fingerprint": "x",
            "seconds": 1.0,
            "finished": "2026-01-01 00:00:00",
            "outputs": [],
            "result": result,
        }
        files.write_json(folder / "steps" / f"{name}.json", content)
    table = compared["open_loop"]["actors"]
    numbers: dict[str, Any] = {
        "open_loop": {"actors": {n: {"mae_rad": e["mae"]["value"]} for n, e in table.items()}},
        "seconds": {"record": 60.0, "train": 240.0, "total": 300.0}, "dataset_hash": "feedbeef", "seed": 0,
    }  # fmt: skip
    if simulated:
        numbers |= {n: closed[n]["success"] for n in ("tuned", "untuned", "int4")}
        numbers["safety"] = {"steps": 91_180, "violations": 0, "interventions": 12}
    files.write_json(folder / "report.json", plain(numbers))
    return folder


class Page(HTMLParser):
    """What a page is made of; unbalanced tags are an error."""

    EMPTY = ("meta", "link", "img", "source", "br", "line", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag


@pytest.fixture(scope="module", params=["simulated", "own data"])
def page(request: pytest.FixtureRequest, toy: Embodiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"), toy, simulated=request.param == "simulated")
    return report(ReportConfig(run=folder)).page


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    html = page.read_text()
    tags = Page(html).tags
    for tag, attributes in tags:
        for name in ("src", "href", "srcset"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}> loads something"
    assert "url(" not in html
    assert "<script" not in html
    assert "@import" not in html
    anchors = {a["id"] for _, a in tags if a.get("id")}
    assert {(a["href"] or "")[1:] for t, a in tags if t == "a" and a.get("href")} <= anchors
    assert all(a.get("alt") for t, a in tags if t == "img")
    for word in ("nan", "None", "inf%"):
        assert not re.search(rf">[^<]*\b{word}\b", html), word


def test_a_simulated_run_has_every_section(toy: Embodiment, tmp_path: Path) -> None:
    html = report(ReportConfig(run=make_run(tmp_path, toy, simulated=True))).page.read_text()
    wanted = "episodes success attention errors safety data training precision latency served limits provenance next"
    assert re.findall(r'<section id="(\w+)"', html) == wanted.split()
    assert "predicted, not measured" in html
    assert "measured here" in html


def test_lost_scenes_are_listed_by_cause(toy: Embodiment, tmp_path: Path) -> None:
    html = report(ReportConfig(run=make_run(tmp_path, toy, simulated=True))).page.read_text()
    section = html[html.index('id="success"') : html.index('id="attention"')]
    lost = [e for e in episodes("tuned", 40) if not e.success]
    rows = re.findall(r"<tr><td>(short of the goal|another object)</td><td>“touch it”</td><td>([^<]*)</td>", section)
    assert len(lost) >= 2
    assert sorted(why for why, _ in rows) == sorted(e.cause for e in lost)
    assert all(missed == ("1.2 cm" if why == "short of the goal" else "") for why, missed in rows)


def test_without_a_simulator_its_sections_are_left_out(toy: Embodiment, tmp_path: Path) -> None:
    html = report(ReportConfig(run=make_run(tmp_path, toy, simulated=False))).page.read_text()
    found = re.findall(r'<section id="(\w+)"', html)
    assert not {"episodes", "success", "safety", "served"} & set(found)
    assert {"attention", "errors", "data", "training", "precision", "latency"} <= set(found)


def test_what_comes_from_data_is_escaped(toy: Embodiment, tmp_path: Path) -> None:
    evil = 'touch "the" <script>alert(1)</script> & cube'
    html = report(ReportConfig(run=make_run(tmp_path, toy, simulated=True, instruction=evil))).page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    Page(html)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, toy: Embodiment) -> None:
    with pytest.raises(EvaluationError, match="no finished comparison"):
        report(ReportConfig(run=tmp_path))
    folder = make_run(tmp_path / "run", toy, simulated=True)
    (folder / "media" / "r1.webp").unlink()
    with pytest.raises(EvaluationError, match=r"r1\.webp', which is gone"):
        report(ReportConfig(run=folder))
    assert not (folder / "report.html").exists()
    (folder / "steps" / "train.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"train\.json' cannot be read"):
        report(ReportConfig(run=folder))


def test_ticks_cover_the_range_with_round_numbers() -> None:
    for low, high in ((0.0, 0.93), (0.0, 7.0), (0.0, 1234.0), (-3.0, 2.0), (0.0, 1e-5)):
        ticks = charts._ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high - 1e-12
        assert 3 <= len(ticks) <= 7
        steps = np.diff(ticks)
        assert np.allclose(steps, steps[0])
        mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]))
        assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-6
    for low, high in ((0.011, 0.5), (1e-5, 3.0), (0.3, 0.4)):
        ticks = charts._log_ticks(low, high)
        assert ticks[0] <= low * 1.001
        assert ticks[-1] >= high * 0.999
        assert 2 <= len(ticks) <= 9


def test_bars_are_placed_by_value(toy: Embodiment, tmp_path: Path) -> None:
    templates = environment(load(make_run(tmp_path, toy, simulated=True)))
    macros = templates.get_template("macros.html").make_module()
    rows = [charts.Bar("a <b>", 0.25, "25%", 0.2, 0.5)]
    drawn = str(macros.bars(rows, full=1.0, goal=0.35))  # type: ignore[attr-defined]
    assert "width:25.00%" in drawn
    assert 'class="whisker" style="left:20.00%;width:30.00%"' in drawn
    assert 'class="goal" style="left:35.00%"' in drawn
    assert "a &lt;b&gt;" in drawn


def test_numbers_read_well() -> None:
    assert figures.points(-0.001) == "0"
    assert figures.points(0.126) == "+13"
    assert figures.percent(-0.0) == "0%"
    assert figures.span(0.02, 0.3, "ms") == "0.02 to 0.3 ms"
    assert figures.span(12.0, 12.1, "ms") == "12 ms"


def test_an_actor_has_one_colour_in_every_chart(toy: Embodiment, tmp_path: Path) -> None:
    source = load(make_run(tmp_path, toy, simulated=True))
    chart = evidence.errors(source).horizon_chart
    assert chart is not None
    colours = {c.name: c.colour for c in chart.curves}
    assert colours == {names.label(n): names.COLOURS[n] for n in ("tuned", "untuned", "hold")}


def test_smoothing_is_a_running_mean() -> None:
    assert charts.smooth([(0, 2.0), (1, 4.0), (2, 9.0)], 2) == [(0, 2.0), (1, 3.0), (2, 6.5)]


def test_an_animation_comes_back_frame_by_frame() -> None:
    from io import BytesIO

    from PIL import Image

    frames = [np.full((20, 30, 3), v, np.uint8) for v in (0, 120, 240)]
    data = media.animation(frames, 10, quality=90, hold_last=0.5)
    image = Image.open(BytesIO(data))
    assert image.n_frames == 3  # type: ignore[attr-defined]
    for i, frame in enumerate(frames):
        image.seek(i)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frame).max() <= 3
    with pytest.raises(EvaluationError, match="at least one frame"):
        media.animation([], 10)


def test_frames_are_chosen_evenly() -> None:
    frames = [np.full((1, 1, 3), i, np.uint8) for i in range(50)]
    assert [int(f[0, 0, 0]) for f in media.evenly(frames, 5)] == [0, 12, 24, 37, 49]
    assert len(media.evenly(frames[:3], 5)) == 3
    sheet = media.beside([np.zeros((4, 6, 3), np.uint8)] * 3, gap=2)
    assert sheet.shape == (4, 22, 3)


@pytest.mark.slow
def test_the_page_in_a_browser(page: Path) -> None:
    from browser import check_page, find_browser

    if find_browser() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium), so the page was not opened in a browser")
    for width in (1280, 400):
        for dark in (False, True):
            seen = check_page(page, width=width, dark=dark)
            assert seen.errors == []
            assert seen.unloaded == []
            assert seen.images > 4
            assert seen.document_width <= width
            assert seen.dark is dark


@pytest.mark.demo
def test_the_demo_page_in_a_browser() -> None:
    import os

    from browser import check_page, find_browser

    folder = Path(os.environ.get("ATHENA_DEMO", "runs/demo"))
    if not (folder / "report.html").is_file():
        pytest.skip(f"'{folder}' has no report.html: run athena demo first")
    if find_browser() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium), so the page was not opened in a browser")
    for width in (1280, 400):
        seen = check_page(folder / "report.html", width=width, dark=width == 400)
        assert (seen.errors, seen.unloaded) == ([], [])
        assert seen.images >= 10
        assert seen.document_width <= width


@pytest.mark.demo
def test_the_numbers_of_the_demo_have_their_keys() -> None:
    import os

    file = Path(os.environ.get("ATHENA_DEMO", "runs/demo")) / "report.json"
    if not file.is_file():
        pytest.skip(f"'{file}' is not there: run athena demo first")
    numbers = json.loads(file.read_text())
    assert set(numbers) == {
        "tuned", "untuned", "hold", "mean_action", "nearest_neighbour", "replay", "object_tasks", "int8", "int4",
        "safety", "ablations", "open_loop", "bench",
        "seconds", "dataset_hash", "seed",
    }  # fmt: skip
    for name in ("tuned", "untuned", "hold", "mean_action", "int8", "int4"):
        p = numbers[name]
        assert 0 <= p["low"] <= p["success"] <= p["high"] <= 1
        assert p["n"] == numbers["tuned"]["n"]
    assert all(numbers[n]["action_error_rad_p95"] > 0 for n in ("int8", "int4"))
    assert numbers["safety"]["violations"] == 0
    assert numbers["safety"]["steps"] > 0
    assert set(numbers["ablations"]) == {"black_image", "other_instruction"}
    parts = {k: v for k, v in numbers["seconds"].items() if k != "total"}
    assert numbers["seconds"]["total"] == pytest.approx(sum(parts.values()), abs=0.1)
