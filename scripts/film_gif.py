"""The films of a demo as one GIF for the README: a row for each task, untuned on the left, tuned on the right.

    python scripts/film_gif.py runs/demo docs/images/demo.gif

Reads the moving pictures of the report. Smaller pictures and fewer colours are taken until the file is small enough.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageSequence

LARGEST = 3 * 2**20  # [bytes]
FILMS, EVERY = 4, 2  # tasks that are shown; every second frame
WIDTHS, COLOURS = (300, 260, 220, 180), (96, 64, 48)
LABEL = 16  # [px] height of the line above a film
HOLD = 8  # times the last frame is shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    step = options.run / "steps" / "compare.json"
    if not step.is_file():
        sys.exit(f"film_gif: '{options.run}' holds no finished comparison; run `athena demo` first.")
    rows = films(json.loads(step.read_text()), options.run)
    if not rows:
        sys.exit(f"film_gif: the report of '{options.run}' shows no films.")
    for width in WIDTHS:
        frames = grid(rows, width)
        for colours in COLOURS:
            write(frames, options.out, colours, rows[0][3])
            size = options.out.stat().st_size
            if size <= LARGEST:
                print(f"{options.out}: {size / 2**20:.2f} MiB, {frames[0].size} px, {len(frames)} frames")
                return
    sys.exit(f"film_gif: '{options.out}' is {options.out.stat().st_size / 2**20:.1f} MiB; fewer films are needed.")


Row = tuple[str, list[Image.Image], list[Image.Image], float]  # instruction, untuned, tuned, [ms] of a frame


def films(report: object, run: Path) -> list[Row]:
    """The first films of the comparison."""
    entries = list(found_films(report))[:FILMS]
    rows = []
    for entry in entries:
        pictures = []
        for name in ("untuned", "tuned"):
            file = next(iter(run.rglob(str(entry[name]["file"]))))
            with Image.open(file) as moving:
                duration = float(moving.info.get("duration", 100))
                pictures.append([f.convert("RGB") for f in ImageSequence.Iterator(moving)][::EVERY])
        rows.append((str(entry["instruction"]), pictures[0], pictures[1], duration * EVERY))
    return rows


def found_films(node: object) -> list[dict[str, dict[str, object]]]:
    """Every entry with both policies and an instruction."""
    if isinstance(node, dict):
        if {"tuned", "untuned", "instruction", "scene"} <= set(node):
            return [node]
        return [f for value in node.values() for f in found_films(value)]
    if isinstance(node, list):
        return [f for value in node for f in found_films(value)]
    return []


def grid(rows: list[Row], width: int) -> list[Image.Image]:
    """Frames of all films together; a film that is over shows its last frame."""
    length = max(len(film) for row in rows for film in row[1:3]) + HOLD
    high = round(width * rows[0][1][0].height / rows[0][1][0].width)
    made = []
    for i in range(length):
        page = Image.new("RGB", (2 * width + 4, len(rows) * (high + LABEL)), "white")
        pen = ImageDraw.Draw(page)
        for n, (instruction, untuned, tuned, _) in enumerate(rows):
            top = n * (high + LABEL)
            pen.text((2, top + 2), f"before: {instruction}" if width >= 220 else "before", fill=(90, 90, 90))
            pen.text((width + 6, top + 2), "after fine-tuning", fill=(20, 120, 60))
            for left, film in ((0, untuned), (width + 4, tuned)):
                picture = film[min(i, len(film) - 1)].resize((width, high), Image.Resampling.LANCZOS)
                page.paste(picture, (left, top + LABEL))
        made.append(page)
    return made


def write(frames: list[Image.Image], out: Path, colours: int, milliseconds: float) -> None:
    """One palette for all frames: what does not move then costs nothing."""
    sample = Image.fromarray(np.concatenate([np.asarray(f) for f in frames[:: max(1, len(frames) // 6)]], axis=0))
    palette = sample.quantize(colours, method=Image.Quantize.MEDIANCUT)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    out.parent.mkdir(parents=True, exist_ok=True)
    small[0].save(out, save_all=True, append_images=small[1:], duration=round(milliseconds), loop=0, optimize=True)


if __name__ == "__main__":
    main()
