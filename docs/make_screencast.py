"""Draw the moving picture of the README from a real run: record the terminal, read its bytes, draw frames.

    python docs/make_screencast.py record DATASET build/screencast --max-time 00:00:04:00
    python docs/make_screencast.py draw build/screencast docs/images/training.gif

``record`` prepares, trains under a budget, presses Ctrl-C, goes on, tests, and keeps every byte with its time; ``draw``
shortens the waiting to twenty seconds and needs Chromium for the last picture, which is the page that the test wrote.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS = 104, 26
SHOWN_S, STEP_S = (1.6, 4.5, 4.0, 2.4), 0.25  # of each command, whatever it took
LETTER, LINE, HEAD, SIZE = 15, 20, 32, (968, 568)  # pixels
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
CONFIG = Path(__file__).parents[1] / "configs" / "msd" / "task04_hippocampus.yaml"
PAGE_AT = (0, 900)  # where the two views of the page begin, pixels
Moment = tuple[float, str]
"""Seconds since a command was typed, and what it had written by then."""


def record(dataset: Path, out: Path, budget: str, cases: int) -> None:
    """Run the journey in the folder ``out`` and keep what the terminal showed in ``screen.json``."""
    (out / "hippocampus").mkdir(parents=True)
    told = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    listed = sorted(told["training"], key=lambda entry: entry["label"])[:cases]
    training = [{key: str((dataset / name).resolve()) for key, name in entry.items()} for entry in listed]
    content = {key: told[key] for key in ("name", "modality", "labels")} | {"training": training}
    (out / "hippocampus" / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    config = CONFIG.read_text(encoding="utf-8").replace("data/store/Task04_Hippocampus", "store")
    config = config.replace("fold: 0,", "fold: 0, steps_per_epoch: 60,")  # a validation before Ctrl-C
    (out / "hippocampus.yaml").write_text(config, encoding="utf-8")
    fit = f"medseg fit --config hippocampus.yaml --run run --trainer.max_time {budget}"
    commands = {
        "medseg prepare hippocampus --out store": "",
        fit: r"step \d+/\d+.*Dice 0",  # a validation has been told
        f"{fit} --ckpt_path last": "",
        "medseg test --run run": "",
    }
    seen = [{"command": command, "seen": _run(command, out, until)} for command, until in commands.items()]
    (out / "screen.json").write_text(json.dumps(seen), encoding="utf-8")


def _run(command: str, folder: Path, until: str) -> list[Moment]:
    """What a command writes into a terminal of its own; some seconds after a text was seen it is sent Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    words = [str(Path(sys.executable).with_name("medseg")), *command.split()[1:]]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    started, seen, stop_s = time.monotonic(), list[Moment](), math.inf
    process = subprocess.Popen(words, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    while True:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                seen.append((time.monotonic() - started, os.read(ours, 1 << 16).decode(errors="replace")))
            except OSError:  # the other end is closed
                break
        if until and seen and re.search(until, seen[-1][1]):
            until, stop_s = "", time.monotonic() + 6
        if time.monotonic() > stop_s:
            process.send_signal(signal.SIGINT)
            seen.append((time.monotonic() - started, "^C"))
            stop_s = math.inf
    print(f"{command}: exit status {process.wait()}, {time.monotonic() - started:.0f} s", flush=True)
    return seen


class Terminal:
    """As much of a terminal as bars and lines of progress need: rows of text, a cursor, nothing of colours."""

    def __init__(self) -> None:
        self.rows, self.row, self.column = [""], 0, 0

    def feed(self, text: str) -> None:
        """Write as a program does, escape sequences and all."""
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b", text):
            if part == "\n":
                self._to(self.row + 1)
            elif part == "\r":
                self.column = 0
            elif not part.startswith("\x1b"):
                self._write(part)
            elif part[-1] == "A":
                self._to(max(self.row - int(part[2:-1] or 1), 0))
            elif part[-1] == "K":
                self.rows[self.row] = "" if part[2:-1] == "2" else self.rows[self.row][: self.column]

    def _to(self, row: int) -> None:
        self.row = row
        self.rows += [""] * (row + 1 - len(self.rows))

    def _write(self, text: str) -> None:
        for piece in (text[at : at + COLUMNS] for at in range(0, len(text), COLUMNS)):
            if self.column + len(piece) > COLUMNS:
                self._to(self.row + 1)
                self.column = 0
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + piece + line[self.column + len(piece) :]
            self.column += len(piece)

    def screen(self) -> tuple[str, ...]:
        """The last rows, as many as fit."""
        return tuple(self.rows[-ROWS:])


def screens(told: list[dict[str, object]]) -> Iterator[tuple[float, float, tuple[str, ...]]]:
    """Every screen to show: for how many seconds, what the clock of the run says, the rows."""
    terminal, clock = Terminal(), 0.0
    for act, shown_s in zip(told, SHOWN_S, strict=True):
        terminal.feed("$ ")
        for word in re.findall(r"\S+ ?", str(act["command"])):
            terminal.feed(word)
            yield 0.08, clock, terminal.screen()
        terminal.feed("\r\n")
        seen = list(act["seen"])
        lasts = seen[-1][0]
        for step in range(steps := int(shown_s / STEP_S)):
            while seen and seen[0][0] <= lasts * (step + 1) / steps:
                terminal.feed(seen.pop(0)[1])
            yield STEP_S, clock + lasts * (step + 1) / steps, terminal.screen()
        clock += lasts
        terminal.feed("\r\n" if terminal.column else "")


def draw(out: Path, picture: Path) -> None:
    """Draw what `record` kept as a GIF, the page of the test at its end."""
    frames, lasting_ms, before = list[Image.Image](), list[int](), None
    for shown_s, clock, rows in screens(json.loads((out / "screen.json").read_text(encoding="utf-8"))):
        if rows == before:
            lasting_ms[-1] += round(1000 * shown_s)
            continue
        frames.append(_screen(rows, clock))
        lasting_ms.append(round(1000 * shown_s))
        before = rows
    for part in _page(out / "run" / "report.html"):
        frames.append(part)
        lasting_ms.append(2400)
    palette = Image.fromarray(np.concatenate([np.asarray(frame) for frame in (frames[-3], *frames[-2:])])).quantize(64)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(picture, save_all=True, append_images=small[1:], duration=lasting_ms, loop=0, optimize=True)
    print(f"{picture}: {len(frames)} frames, {sum(lasting_ms) / 1000:.1f} s, {picture.stat().st_size / 1e3:.0f} kB")


def _screen(rows: tuple[str, ...], clock: float) -> Image.Image:
    """One frame: a terminal with the clock of the real run in its title."""
    image = Image.new("RGB", SIZE, "#1c1f24")
    pen, font = ImageDraw.Draw(image), ImageFont.truetype(FONT, LETTER)
    pen.rectangle((0, 0, SIZE[0], HEAD), fill="#31363f")
    told = f"MRI of the hippocampus on two CPU cores, {int(clock // 60)}:{int(clock % 60):02d}"
    pen.text((14, 7), told, "#aab2bf", font)
    for number, row in enumerate(rows):
        pen.text((14, HEAD + 8 + number * LINE), row, "#ffffff" if row.startswith("$ ") else "#c3c9d2", font)
    return image


def _page(report: Path) -> list[Image.Image]:
    """The upper part of the page, and its first picture of an organ."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("the last frames need Chromium")
    shot = report.with_name("shot.png")
    words = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
    ]
    size = f"--window-size={SIZE[0]},2600"
    subprocess.run([*words, size, f"--screenshot={shot}", report.resolve().as_uri()], check=True, capture_output=True)
    with Image.open(shot) as opened:
        whole = opened.convert("RGB")
    return [whole.crop((0, top, SIZE[0], top + SIZE[1])) for top in PAGE_AT]


def main() -> None:
    """Record or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record")
    for name in ("dataset", "out"):
        recording.add_argument(name, type=Path)
    recording.add_argument("--max-time", default="00:00:04:00")
    recording.add_argument("--cases", type=int, default=208)
    drawing = actions.add_parser("draw")
    drawing.add_argument("out", type=Path)
    drawing.add_argument("picture", type=Path)
    options = parser.parse_args()
    if options.action == "record":
        record(options.dataset, options.out, options.max_time, options.cases)
    else:
        draw(options.out, options.picture)


if __name__ == "__main__":
    main()
