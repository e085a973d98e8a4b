"""Draws the bundled sample: twelve flat scenes, their boxes and captions in COCO's format.

``python tests/sample/draw.py [OUT_DIR] [--sheet PNG]`` writes ``images/*.png``,
``annotations/captions_train.json`` and ``annotations/instances_train.json``.

Boxes are measured, not typed: each shape is drawn twice, in colour and as an object number on a
second bitmap, so that what a later object hides is taken away and a box holds exactly the visible
pixels. Every shape is a polygon with whole-number corners, since Pillow's own ellipses and thick
lines have changed between releases.

**Source:** the format is COCO's, https://cocodataset.org/#format-data. Drawings, captions and boxes
are dedicated to the public domain, CC0-1.0.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[2] / "mminstruct" / "sample"
SCALE = 3  # drawn three times as large and averaged down: smooth edges

Point = tuple[float, float]

INK = "#22313f"
NAVY = "#2b4c6f"
BLUE = "#3d7ea6"
SKY = "#bfe3f0"
TEAL = "#2a9d8f"
GREEN = "#7fb069"
LEAF = "#4f8a4c"
PINE = "#2f6650"
YELLOW = "#f2c14e"
ORANGE = "#f18f3b"
RED = "#d9483b"
PINK = "#f2a6b3"
PURPLE = "#7a5c99"
CREAM = "#fbf3e0"
WHITE = "#ffffff"
GREY = "#9aa7b1"
SILVER = "#d5dce1"
BROWN = "#7a4e2d"
TAN = "#c8935a"
FAIR = "#f0c3a0"
DARK = "#8d5a3c"


@dataclass(frozen=True, slots=True)
class Thing:
    """A drawn object, or a group of them, as it is visible in the end.

    Attributes:
        label: category name, such as ``traffic light``.
        is_group: the mask covers several touching objects.
        bbox_xywh: left, top, width and height in whole pixels, tight around the mask.
        area: pixels in the mask.
        counts: run lengths of the mask, column by column, beginning with background (COCO's RLE).
    """

    label: str
    is_group: bool
    bbox_xywh: tuple[int, int, int, int]
    area: int
    counts: list[int]


class Scene:
    """A bitmap in colour and, beside it, which object each of its points belongs to.

    Coordinates are pixels of the finished image, in the frame that the enclosing `place` set.
    """

    def __init__(self, width: int, height: int, background: str) -> None:
        """An empty scene of one colour."""
        self.width, self.height = width, height
        size = (width * SCALE, height * SCALE)
        self._colors = Image.new("RGB", size, background)
        self._owners = Image.new("L", size, 0)
        self._pens = ImageDraw.Draw(self._colors), ImageDraw.Draw(self._owners)
        self._labels: list[tuple[str, bool]] = []
        self._owner = 0  # 0 is scenery
        self._frame = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)  # x' = ax + cy + e, y' = bx + dy + f

    @contextmanager
    def place(
        self,
        at: Point = (0, 0),
        scale: float = 1.0,
        *,
        label: str | None = None,
        is_group: bool = False,
        flip: bool = False,
        turn_deg: float = 0.0,
    ) -> Iterator[None]:
        """A frame with its origin at a point, turned clockwise; with a label, a new object too."""
        before = self._frame, self._owner
        a, b, c, d, _, _ = self._frame
        cos, sin = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
        xx, xy = (-scale if flip else scale) * cos, (-scale if flip else scale) * sin
        yx, yy = -scale * sin, scale * cos
        self._frame = (
            a * xx + c * xy,
            b * xx + d * xy,
            a * yx + c * yy,
            b * yx + d * yy,
            *self._to_image(at),
        )
        if label is not None:
            self._labels.append((label, is_group))
            self._owner = len(self._labels)
        yield
        self._frame, self._owner = before

    def _to_image(self, point: Point) -> Point:
        a, b, c, d, e, f = self._frame
        x, y = point
        return a * x + c * y + e, b * x + d * y + f

    def polygon(self, points: Sequence[Point], fill: str) -> None:
        """A filled polygon."""
        corners = [
            (math.floor(x * SCALE + 0.5), math.floor(y * SCALE + 0.5))
            for x, y in map(self._to_image, points)
        ]
        colors, owners = self._pens
        colors.polygon(corners, fill=fill)
        owners.polygon(corners, fill=self._owner)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: str, r: float = 0) -> None:
        """A rectangle; its corners may be rounded with radius r."""
        if not r:
            self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)
            return
        turns = [(x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90)]
        turns.append((x0 + r, y0 + r, 180))
        self.polygon([p for x, y, deg in turns for p in arc(x, y, r, r, deg, deg + 90, 8)], fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        """A filled ellipse around a point."""
        self.polygon(arc(x, y, rx, ry), fill)

    def circle(self, x: float, y: float, r: float, fill: str) -> None:
        """A filled circle around a point."""
        self.ellipse(x, y, r, r, fill)

    def line(self, points: Sequence[Point], width: float, fill: str) -> None:
        """A stroke with round ends and joints."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            dx, dy = (x1 - x0) / length * width / 2, (y1 - y0) / length * width / 2
            corners = [(x0 - dy, y0 + dx), (x0 + dy, y0 - dx), (x1 + dy, y1 - dx)]
            self.polygon([*corners, (x1 - dy, y1 + dx)], fill)
        for x, y in points:
            self.polygon(arc(x, y, width / 2, width / 2, steps=16), fill)

    def image(self) -> Image.Image:
        """The finished picture, RGB."""
        return self._colors.reduce(SCALE)

    def things(self) -> list[Thing]:
        """The objects in the order of their drawing; a pixel is an object's if its centre is."""
        owners = self._owners.resize((self.width, self.height), Image.Resampling.NEAREST)
        return [
            measure(owners.point([int(i == number) for i in range(256)]), *label)
            for number, label in enumerate(self._labels, start=1)
        ]


def arc(
    x: float,
    y: float,
    rx: float,
    ry: float,
    start_deg: float = 0,
    stop_deg: float = 360,
    steps: int = 48,
) -> list[Point]:
    """Points on an ellipse, clockwise from the right, both ends included."""
    angles = [
        math.radians(start_deg + (stop_deg - start_deg) * i / steps) for i in range(steps + 1)
    ]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def measure(mask: Image.Image, label: str, is_group: bool) -> Thing:
    """The object that a mask of zeros and ones shows."""
    box = mask.getbbox()
    if box is None:
        raise ValueError(f"nothing is visible of a {label}")
    left, top, right, bottom = box
    columns = mask.transpose(Image.Transpose.TRANSPOSE).tobytes()
    runs = [(value, len(list(run))) for value, run in groupby(columns)]
    counts = [0] * runs[0][0] + [length for _, length in runs]
    area = sum(length for value, length in runs if value)
    return Thing(label, is_group, (left, top, right - left, bottom - top), area, counts)


# Scenery: nothing here has a box.


def cloud(s: Scene, at: Point, scale: float = 1.0, fill: str = WHITE) -> None:
    """A cloud, 120 wide, standing on its point."""
    with s.place(at, scale):
        s.rect(-60, -22, 60, 0, fill, r=11)
        s.circle(-22, -24, 20, fill)
        s.circle(12, -30, 27, fill)


def sun(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A sun with rays around its point."""
    with s.place(at, scale):
        for turn in range(12):
            with s.place(turn_deg=turn * 30):
                s.polygon([(-5, -40), (5, -40), (0, -56)], YELLOW)
        s.circle(0, 0, 34, YELLOW)


def tree(s: Scene, at: Point, scale: float = 1.0, crown: str = LEAF, spots: str = "") -> None:
    """A round tree, 150 high, with blossoms if they have a colour."""
    with s.place(at, scale):
        s.polygon([(-9, 0), (-5, -70), (5, -70), (9, 0)], BROWN)
        s.line([(0, -50), (22, -78)], 6, BROWN)
        for x, y, r in [(-28, -86, 30), (28, -86, 30), (0, -112, 38), (0, -80, 30)]:
            s.circle(x, y, r, crown)
        for x, y in [(-34, -92), (-12, -124), (14, -106), (34, -84), (-8, -82), (16, -134)]:
            if spots:
                s.circle(x, y, 5, spots)


def pine(s: Scene, at: Point, scale: float = 1.0, fill: str = PINE, snow: str = "") -> None:
    """A fir, 130 high, its tip white if it snows."""
    with s.place(at, scale):
        s.rect(-6, -20, 6, 0, BROWN)
        for top, half in [(-74, 40), (-104, 32), (-130, 23)]:
            s.polygon([(-half, top + 58), (half, top + 58), (0, top)], fill)
            if snow:
                s.polygon([(-half * 0.42, top + 24), (half * 0.42, top + 24), (0, top)], snow)


def hill(s: Scene, x: float, y: float, rx: float, ry: float, fill: str) -> None:
    """A rounded hill with its foot at y."""
    s.polygon(arc(x, y, rx, ry, 180, 360), fill)


def tuft(s: Scene, at: Point, fill: str, scale: float = 1.0) -> None:
    """Three blades of grass."""
    with s.place(at, scale):
        for lean in (-7, 0, 7):
            s.polygon([(lean / 2 - 2, 0), (lean / 2 + 2, 0), (lean, -13 + abs(lean) / 2)], fill)


def flower(s: Scene, at: Point, fill: str) -> None:
    """A flower with four petals, 16 high."""
    with s.place(at):
        s.line([(0, 0), (0, -10)], 2, LEAF)
        for x, y in [(-4, -12), (4, -12), (0, -16), (0, -8)]:
            s.circle(x, y, 3.2, fill)
        s.circle(0, -12, 2.4, YELLOW)


def block(
    s: Scene, box: tuple[float, float, float, float], wall: str, pane: str, rows: int, cols: int
) -> None:
    """A city building with a grid of windows."""
    x0, y0, x1, y1 = box
    s.rect(x0, y0, x1, y1, wall)
    s.rect(x0 - 4, y0 - 6, x1 + 4, y0 + 2, INK)
    step_x, step_y = (x1 - x0) / cols, (y1 - y0) / rows
    for row in range(rows):
        for col in range(cols):
            x, y = x0 + step_x * (col + 0.28), y0 + step_y * (row + 0.28)
            s.rect(x, y, x + step_x * 0.44, y + step_y * 0.48, pane)


# Objects: each draws itself with its label, its point where it stands unless said otherwise.


def person(
    s: Scene,
    at: Point,
    scale: float = 1.0,
    *,
    shirt: str,
    trousers: str = NAVY,
    hair: str = BROWN,
    skin: str = FAIR,
    hands: tuple[Point, Point] = ((-18, -40), (18, -40)),
    feet: tuple[Point, Point] = ((-8, 0), (8, 0)),
    knees: tuple[Point, Point] | None = None,
    hips_y: float = -46,
    shoes: str = INK,
    turn_deg: float = 0,
    flip: bool = False,
) -> None:
    """A person, 102 high when standing; the first hand and foot are the far ones."""
    shoulder_y = hips_y - 30
    elbows = [
        (x * 0.5 + side * 8, (y + shoulder_y) / 2 + 4)
        for side, (x, y) in zip((-1, 1), hands, strict=True)
    ]
    with s.place(at, scale, label="person", turn_deg=turn_deg, flip=flip):
        for i, (x, y) in enumerate(feet):
            knee = knees[i] if knees else ((x / 2), (hips_y + y) / 2)
            s.line([(-4 + 8 * i, hips_y), knee, (x, y - 4)], 10, trousers)
            s.rect(x - 5, y - 7, x + 9, y, shoes, r=3.5)
        s.line([(-9, shoulder_y + 4), elbows[0], hands[0]], 8, shirt)
        s.circle(*hands[0], 5, skin)
        s.rect(-14, shoulder_y - 4, 14, hips_y + 4, shirt, r=9)
        s.rect(-4, shoulder_y - 10, 4, shoulder_y, skin)
        s.circle(0, shoulder_y - 20, 13.5, hair)
        s.ellipse(2, shoulder_y - 17, 11, 11.5, skin)
        s.circle(6.5, shoulder_y - 18, 1.5, INK)
        s.circle(-1, shoulder_y - 18, 1.5, INK)
        s.line([(0, shoulder_y - 12), (3, shoulder_y - 10.5), (6, shoulder_y - 12)], 1.4, RED)
        s.line([(9, shoulder_y + 4), elbows[1], hands[1]], 8, shirt)
        s.circle(*hands[1], 5, skin)


def sailboat(s: Scene, at: Point, scale: float, hull: str, sail: str, flip: bool = False) -> None:
    """A boat with two sails, 150 high; the point is its waterline."""
    with s.place(at, scale, label="boat", flip=flip):
        s.polygon([(-60, -24), (62, -24), (44, 4), (-46, 4)], hull)
        s.polygon([(-60, -24), (62, -24), (58, -17), (-56, -17)], CREAM)
        s.rect(-4, -150, 0, -24, BROWN)
        s.polygon([(2, -146), (2, -34), (52, -34)], sail)
        s.polygon([(-6, -128), (-6, -34), (-44, -34)], CREAM)
        s.polygon([(2, -146), (2, -112), (17, -112)], WHITE)
        s.polygon([(-4, -150), (-4, -161), (-20, -155)], RED)


def lighthouse(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A red and white tower, 220 high."""
    with s.place(at, scale, label="lighthouse"):
        for i in range(5):
            low, high = i * 32, (i + 1) * 32
            half_low, half_high = 30 - low * 0.075, 30 - high * 0.075
            corners = [(-half_low, -low), (half_low, -low), (half_high, -high), (-half_high, -high)]
            s.polygon(corners, WHITE if i % 2 else RED)
        s.rect(-26, -168, 26, -160, INK)
        s.rect(-14, -192, 14, -168, YELLOW)
        s.rect(-2, -192, 2, -168, INK)
        s.polygon([(-20, -192), (20, -192), (0, -214)], RED)
        s.rect(-1.5, -222, 1.5, -210, INK)
        s.rect(-8, -22, 8, 0, INK, r=3)
        s.rect(-5, -84, 5, -72, INK)
        s.rect(-5, -132, 5, -120, INK)


def gull(s: Scene, at: Point, scale: float = 1.0, fill: str = WHITE, flip: bool = False) -> None:
    """A bird in flight, 60 wide, around its point."""
    with s.place(at, scale, label="bird", flip=flip):
        s.polygon([(-4, 2), (-14, -16), (-30, -14), (-18, -4)], fill)
        s.polygon([(4, 2), (10, -18), (28, -20), (18, -6)], fill)
        s.ellipse(0, 2, 14, 6, fill)
        s.circle(13, -1, 5, fill)
        s.polygon([(17, -3), (24, 0), (17, 2)], ORANGE)
        s.polygon([(-12, 0), (-24, 6), (-12, 6)], fill)
        s.circle(14, -2, 1.2, INK)


def cat(s: Scene, at: Point, scale: float = 1.0, coat: str = ORANGE, flip: bool = False) -> None:
    """A sitting cat, 110 high."""
    with s.place(at, scale, label="cat", flip=flip):
        s.line([(26, -10), (46, -8), (56, -24), (52, -42)], 10, coat)
        s.polygon([(-26, 0), (-20, -56), (20, -56), (34, 0)], coat)
        s.ellipse(8, -18, 28, 19, coat)
        s.ellipse(-2, -34, 12, 20, CREAM)
        for x in (-14, 4):
            s.rect(x - 7, -12, x + 7, 0, coat, r=6)
        s.polygon([(-26, -82), (-26, -112), (-6, -96)], coat)
        s.polygon([(22, -82), (22, -112), (2, -96)], coat)
        s.polygon([(-22, -88), (-22, -103), (-11, -95)], PINK)
        s.polygon([(18, -88), (18, -103), (7, -95)], PINK)
        s.ellipse(-2, -77, 27, 23, coat)
        s.ellipse(-2, -69, 13, 9, CREAM)
        for x in (-13, 9):
            s.ellipse(x, -80, 4, 5, INK)
            s.circle(x + 1.2, -82, 1.3, WHITE)
        s.polygon([(-5, -74), (1, -74), (-2, -70)], RED)
        for y in (-72, -67):
            s.line([(-18, y), (-34, y - 3 + (y + 72))], 1.2, INK)
            s.line([(14, y), (30, y - 3 + (y + 72))], 1.2, INK)


def dog(
    s: Scene,
    at: Point,
    scale: float = 1.0,
    coat: str = TAN,
    far: str = BROWN,
    *,
    paws: Sequence[Point] = ((-30, 0), (-22, 0), (20, 0), (28, 0)),
    turn_deg: float = 0,
    flip: bool = False,
) -> None:
    """A dog in profile, 84 high; paws from back to front."""
    with s.place(at, scale, label="dog", turn_deg=turn_deg, flip=flip):
        s.line([(-36, -46), (-50, -58), (-54, -72)], 8, coat)
        for i, (x, y) in enumerate(paws):
            s.line([(-26 if i < 2 else 24, -34), (x, y - 5)], 11, coat if i % 2 else far)
        s.rect(-42, -56, 40, -24, coat, r=16)
        s.polygon([(18, -50), (40, -34), (52, -66), (34, -78)], coat)
        s.line([(25, -60), (41, -48)], 5, RED)
        s.circle(44, -70, 17, coat)
        s.rect(46, -74, 74, -58, coat, r=7)
        s.circle(72, -70, 4.5, INK)
        s.line([(56, -61), (68, -61)], 1.6, far)
        s.circle(51, -75, 2.4, WHITE if coat == INK else INK)
        s.polygon([(30, -84), (42, -86), (42, -58), (31, -54)], far)


def sheep(
    s: Scene, at: Point, scale: float = 1.0, *, grazing: bool = False, flip: bool = False
) -> None:
    """A sheep in profile, 80 high."""
    with s.place(at, scale, label="sheep", flip=flip):
        for x in (-24, -10, 12, 26):
            s.rect(x - 3.5, -28, x + 3.5, 0, INK)
        for x, y, r in [(-28, -44, 19), (-8, -54, 21), (14, -54, 21), (32, -44, 17)]:
            s.circle(x, y, r, CREAM)
        s.rect(-40, -48, 42, -24, CREAM, r=12)
        with s.place((46, -21 if grazing else -62), turn_deg=60 if grazing else 14):
            s.circle(-4, -8, 10, CREAM)
            s.ellipse(4, 0, 15, 9.5, INK)
            s.ellipse(-8, 3, 9, 4, INK)
            s.circle(8, -2, 1.8, WHITE)


def cow(s: Scene, at: Point, scale: float = 1.0, flip: bool = False) -> None:
    """A spotted cow in profile, 80 high."""
    with s.place(at, scale, label="cow", flip=flip):
        s.line([(-46, -58), (-54, -40), (-52, -22)], 3, INK)
        for x in (-38, -24, 22, 36):
            s.rect(x - 5, -30, x + 5, 0, CREAM)
            s.rect(x - 5, -6, x + 5, 0, INK)
        s.rect(-48, -68, 46, -24, WHITE, r=12)
        s.ellipse(-24, -56, 15, 10, INK)
        s.ellipse(12, -44, 13, 11, INK)
        s.ellipse(-4, -24, 9, 5, PINK)
        s.polygon([(34, -66), (40, -44), (66, -60), (58, -80)], WHITE)
        s.rect(46, -84, 72, -58, WHITE, r=9)
        s.rect(62, -70, 80, -56, PINK, r=6)
        s.ellipse(40, -76, 9, 5, INK)
        s.polygon([(50, -83), (48, -92), (56, -84)], TAN)
        s.circle(62, -74, 2.2, INK)


def bicycle(s: Scene, at: Point, scale: float = 1.0, frame: str = TEAL, flip: bool = False) -> None:
    """A bicycle in profile, 66 high and 120 wide."""
    with s.place(at, scale, label="bicycle", flip=flip):
        for x in (-36, 36):
            s.line(arc(x, -22, 20, 20), 3.6, INK)
            for i in range(4):
                s.line(arc(x, -22, 19, 19, i * 45, i * 45 + 180, 1), 0.7, GREY)
        s.line([(-36, -22), (-4, -22), (24, -50), (-14, -50), (-36, -22)], 4, frame)
        s.line([(-4, -22), (-17, -60)], 4, frame)
        s.line([(36, -22), (22, -58)], 4, frame)
        s.line([(22, -58), (32, -64), (36, -59)], 3.4, INK)
        s.rect(-29, -65, -8, -59, INK, r=3)
        s.circle(-4, -22, 5, INK)
        s.line([(-4, -22), (2, -12)], 2.6, INK)
        s.rect(-2, -12, 8, -9, INK)


def wheel(s: Scene, x: float, y: float, r: float) -> None:
    """A car's wheel, part of whatever is being drawn."""
    s.circle(x, y, r, INK)
    s.circle(x, y, r * 0.5, SILVER)


def bus(s: Scene, at: Point, scale: float = 1.0, paint: str = RED) -> None:
    """A city bus in profile, 110 high and 270 wide."""
    with s.place(at, scale, label="bus"):
        s.rect(-135, -110, 135, -12, paint, r=12)
        s.rect(-135, -48, 135, -38, CREAM)
        for i in range(5):
            s.rect(-124 + i * 40, -96, -90 + i * 40, -58, SKY, r=4)
        s.rect(78, -96, 104, -14, INK, r=3)
        s.rect(81, -92, 90, -18, SKY)
        s.rect(92, -92, 101, -18, SKY)
        s.rect(110, -96, 135, -56, SKY, r=4)
        s.rect(128, -28, 136, -20, YELLOW)
        s.rect(-136, -30, -130, -20, ORANGE)
        wheel(s, -84, -16, 17)
        wheel(s, 54, -16, 17)


def car(s: Scene, at: Point, scale: float = 1.0, paint: str = YELLOW, flip: bool = False) -> None:
    """A small car in profile, 56 high and 124 wide."""
    with s.place(at, scale, label="car", flip=flip):
        s.polygon([(-44, -34), (-28, -58), (20, -58), (42, -34)], paint)
        s.polygon([(-35, -35), (-23, -53), (-5, -53), (-5, -35)], SKY)
        s.polygon([(1, -35), (1, -53), (17, -53), (33, -35)], SKY)
        s.rect(-62, -37, 62, -10, paint, r=9)
        s.rect(54, -32, 63, -24, CREAM)
        wheel(s, -36, -12, 13)
        wheel(s, 36, -12, 13)


def traffic_light(s: Scene, at: Point, scale: float = 1.0, lit: int = 2) -> None:
    """A traffic light, 170 high; lit is 0 for red, 1 for amber, 2 for green."""
    with s.place(at, scale, label="traffic light"):
        s.rect(-4, -90, 4, 0, INK)
        s.rect(-10, -6, 10, 0, INK)
        s.rect(-18, -172, 18, -84, INK, r=8)
        for i, on in enumerate((RED, YELLOW, "#6fdc6f")):
            s.circle(0, -156 + i * 28, 10.5, on if i == lit else "#47586a")


def bench(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A park bench seen from the front, 60 high and 130 wide."""
    with s.place(at, scale, label="bench"):
        for x in (-52, 46):
            s.rect(x, -58, x + 6, 0, INK)
        for y in (-60, -46, -28):
            s.rect(-64, y, 64, y + 9, TAN, r=2)
        s.rect(-64, -20, 64, -15, BROWN, r=2)


def frisbee(s: Scene, at: Point, turn_deg: float = 0) -> None:
    """A flying disc, 40 wide, around its point."""
    with s.place(at, label="frisbee", turn_deg=turn_deg):
        s.ellipse(0, 0, 21, 7, RED)
        s.ellipse(0, -2, 14, 3.4, ORANGE)


def kite(s: Scene, at: Point, scale: float, fill: str, turn_deg: float = 0) -> None:
    """A kite with a tail, around its point."""
    with s.place(at, scale, label="kite", turn_deg=turn_deg):
        s.line([(0, 34), (6, 48), (-4, 60), (5, 74)], 2.4, INK)
        s.polygon([(0, -34), (24, -6), (0, 34), (-24, -6)], fill)
        s.polygon([(0, -34), (24, -6), (0, -6)], CREAM)
        s.polygon([(0, 34), (-24, -6), (0, -6)], YELLOW)


def tent(s: Scene, at: Point, scale: float = 1.0, fill: str = ORANGE) -> None:
    """A tent seen from the front, 110 high and 190 wide."""
    with s.place(at, scale, label="tent"):
        s.polygon([(-60, 0), (0, -112), (96, 0)], RED)
        s.polygon([(-96, 0), (-18, -112), (60, 0)], fill)
        s.line([(-20, -116), (0, -116)], 4, BROWN)
        s.polygon([(-18, -112), (0, -112), (96, 0), (60, 0)], RED)
        s.polygon([(-44, 0), (-18, -74), (10, 0)], "#5a2a27")
        s.polygon([(-44, 0), (-18, -74), (-26, 0)], YELLOW)


def campfire(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A fire on logs, 74 high."""
    with s.place(at, scale, label="campfire"):
        s.line([(-30, -4), (28, -14)], 9, BROWN)
        s.line([(30, -4), (-28, -14)], 9, TAN)
        flame = [(-24, -14), (-26, -40), (-12, -32), (-2, -74), (12, -40), (24, -48), (24, -14)]
        s.polygon(flame, RED)
        s.polygon(
            [(-15, -13), (-14, -34), (-5, -28), (1, -52), (9, -28), (16, -32), (15, -13)], ORANGE
        )
        s.polygon([(-7, -13), (-6, -24), (1, -34), (8, -22), (8, -13)], YELLOW)


def ball(s: Scene, at: Point, r: float = 9) -> None:
    """A football around its point."""
    with s.place(at, label="sports ball"):
        s.circle(0, 0, r, WHITE)
        s.polygon(arc(0, 0, r * 0.42, r * 0.42, -90, 270, 5), INK)
        for i in range(5):
            x, y = arc(0, 0, r * 0.86, r * 0.86, -54, 306, 5)[i]
            s.circle(x, y, r * 0.2, INK)


def goal(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A football goal seen from the front, 90 high and 210 wide."""
    with s.place(at, scale, label="goal"):
        for i in range(1, 14):
            s.line([(-100 + i * 14.3, -88), (-100 + i * 14.3, -2)], 0.9, SILVER)
        for i in range(1, 6):
            s.line([(-100, -88 + i * 15), (100, -88 + i * 15)], 0.9, SILVER)
        s.line([(-102, -2), (-102, -90), (102, -90), (102, -2)], 6, WHITE)


def train(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A steam engine and three coaches, 400 wide; the point is below the engine's front."""
    with s.place(at, scale, label="train"):
        for i, paint in enumerate((TEAL, YELLOW, TEAL)):
            x = -402 + i * 92
            s.rect(x, -18, x + 94, -13, INK)
            s.rect(x + 4, -70, x + 88, -14, paint, r=6)
            s.rect(x, -76, x + 92, -68, CREAM, r=4)
            for j in range(3):
                s.rect(x + 12 + j * 25, -60, x + 30 + j * 25, -38, SKY, r=3)
            for dx in (20, 36, 58, 74):
                wheel(s, x + dx, -8, 8)
        s.rect(-124, -22, -4, -14, INK)
        s.rect(-120, -84, -74, -18, RED, r=4)
        s.rect(-126, -90, -68, -82, INK, r=3)
        s.rect(-112, -74, -84, -50, SKY, r=3)
        s.rect(-78, -60, -14, -20, RED, r=6)
        s.rect(-58, -72, -42, -58, YELLOW, r=5)
        s.polygon([(-32, -58), (-36, -92), (-14, -92), (-18, -58)], INK)
        s.circle(-14, -40, 7, YELLOW)
        s.polygon([(-16, -20), (4, 0), (-16, 0)], INK)
        for x, r in ((-100, 14), (-66, 14), (-34, 9)):
            wheel(s, x, -r, r)
        s.line([(-100, -14), (-66, -14)], 3.4, GREY)


def bridge(s: Scene, y: float, foot_y: float, spans: int, width: float) -> None:
    """A stone viaduct across the picture: its deck at y, its piers down to foot_y."""
    stone, shade, step = "#b9a489", "#9c876d", width / spans
    with s.place(label="bridge"):
        for i in range(spans):
            x = i * step
            inner = arc(x + step / 2, y + 92, step / 2 - 16, 60, 0, -180)
            outline = [(x, y), (x + step, y), (x + step, foot_y), (x + step - 16, foot_y)]
            s.polygon([*outline, *inner, (x + 16, foot_y), (x, foot_y)], stone)
            s.line(arc(x + step / 2, y + 92, step / 2 - 13, 63, 0, -180), 5, shade)
        s.rect(0, y, width, y + 9, shade)
        for i in range(1, spans):
            s.rect(i * step - 20, foot_y - 8, i * step + 20, foot_y, shade)


def laptop(s: Scene, at: Point, scale: float = 1.0) -> None:
    """An open laptop seen from the front, 126 high and 210 wide."""
    with s.place(at, scale, label="laptop"):
        s.rect(-86, -126, 86, -12, INK, r=8)
        s.rect(-78, -118, 78, -20, SKY)
        s.polygon(
            [(-78, -20), (-78, -46), (-36, -78), (-8, -52), (34, -92), (78, -40), (78, -20)], TEAL
        )
        s.circle(-44, -98, 11, YELLOW)
        s.polygon([(-88, -12), (88, -12), (106, 0), (-106, 0)], GREY)
        s.polygon([(-106, 0), (106, 0), (102, 5), (-102, 5)], "#75828c")
        s.polygon([(-22, -5), (22, -5), (24, 0), (-24, 0)], SILVER)


def lamp(s: Scene, at: Point, scale: float = 1.0, flip: bool = False) -> None:
    """A jointed desk lamp, 180 high."""
    with s.place(at, scale, label="lamp", flip=flip):
        s.line([(0, -6), (-26, -90), (26, -156)], 6, INK)
        s.circle(-26, -90, 7, RED)
        s.rect(-34, -8, 34, 0, INK, r=4)
        with s.place((26, -156), turn_deg=-38):
            s.ellipse(0, 34, 16, 10, YELLOW)
            s.polygon([(-12, -14), (12, -14), (34, 32), (-34, 32)], RED)


def book(s: Scene, box: tuple[float, float, float, float], cover: str, turn_deg: float = 0) -> None:
    """A book's back: left, top, right, bottom; it leans around its lower left corner."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    with s.place((x0, y1), label="book", turn_deg=turn_deg):
        s.rect(0, -height, width, 0, cover, r=2)
        if height > width:
            s.rect(0, -height + 9, width, -height + 14, CREAM)
            s.rect(0, -14, width, -9, CREAM)
        else:
            s.rect(9, -height, 14, 0, CREAM)
            s.rect(width - 14, -height, width - 9, 0, CREAM)


def cup(s: Scene, at: Point, scale: float = 1.0, fill: str = WHITE, flip: bool = False) -> None:
    """A steaming cup, its steam being scenery, 44 high without it."""
    with s.place(at, scale, flip=flip):
        for x in (-8, 6):
            s.line([(x, -50), (x + 4, -57), (x, -64), (x + 4, -71)], 2.2, "#e9eef0")
        with s.place(label="cup"):
            s.line(arc(22, -24, 11, 12, -90, 90), 5, fill)
            s.polygon([(-24, -42), (24, -42), (19, -4), (12, 0), (-12, 0), (-19, -4)], fill)
            s.ellipse(0, -42, 24, 5, CREAM)
            s.ellipse(0, -41, 20, 3.4, BROWN)
            s.circle(0, -22, 7, RED)


def plant(s: Scene, at: Point, scale: float = 1.0, pot: str = RED) -> None:
    """A potted plant, 110 high."""
    with s.place(at, scale, label="potted plant"):
        for turn, length in ((-52, 56), (-26, 70), (0, 78), (26, 70), (52, 56)):
            with s.place((0, -36), turn_deg=turn):
                s.polygon([(0, 0), (-11, -length * 0.55), (0, -length), (11, -length * 0.55)], LEAF)
                s.line([(0, 0), (0, -length * 0.8)], 1.6, GREEN)
        s.polygon([(-26, -36), (26, -36), (19, 0), (-19, 0)], pot)
        s.rect(-30, -44, 30, -33, pot, r=3)


def clock(s: Scene, at: Point, r: float = 32) -> None:
    """A wall clock around its point; it is ten past ten."""
    with s.place(at, r / 32, label="clock"):
        s.circle(0, 0, 32, INK)
        s.circle(0, 0, 27, CREAM)
        for x, y in arc(0, 0, 22, 22, 0, 360, 12):
            s.circle(x, y, 1.7, INK)
        s.line([(0, 0), (-11, -7)], 3.4, INK)
        s.line([(0, 0), (15, -11)], 2.4, INK)
        s.circle(0, 0, 3, RED)


def chair(s: Scene, at: Point, scale: float = 1.0, wood: str = TEAL) -> None:
    """A chair seen from the back, 190 high."""
    with s.place(at, scale, label="chair"):
        for x in (-44, 36):
            s.rect(x, -190, x + 8, 0, wood, r=3)
        for y in (-184, -156, -128):
            s.rect(-42, y, 42, y + 14, wood, r=4)
        s.rect(-50, -96, 50, -82, wood, r=4)


def apple(s: Scene, at: Point, r: float = 16, fill: str = RED) -> None:
    """An apple around its point."""
    with s.place(at, r / 16, label="apple"):
        apple_shape(s, fill)


def apple_shape(s: Scene, fill: str) -> None:
    """An apple of radius 16, part of whatever is being drawn."""
    s.line([(0, -12), (3, -20)], 2.6, BROWN)
    s.polygon([(3, -17), (10, -22), (14, -17), (8, -14)], LEAF)
    s.ellipse(-5, 0, 11.5, 15, fill)
    s.ellipse(5, 0, 11.5, 15, fill)
    s.ellipse(-8, -6, 3, 4, "#f6b7a8" if fill == RED else CREAM)


def orange(s: Scene, at: Point, r: float = 16) -> None:
    """An orange around its point."""
    with s.place(at, r / 16, label="orange"):
        s.circle(0, 0, 16, ORANGE)
        s.circle(-6, -6, 4, "#f9bb80")
        s.circle(1, -13, 2, LEAF)


def banana(s: Scene, at: Point, scale: float = 1.0, turn_deg: float = 0) -> None:
    """A banana lying with its ends up, 70 wide, around its middle."""
    with s.place(at, scale, label="banana", turn_deg=turn_deg):
        outer, inner = arc(0, -22, 36, 34, 160, 20), arc(0, -30, 34, 24, 20, 160)
        s.polygon([*outer, *inner], YELLOW)
        s.circle(-34, -14, 4, BROWN)
        s.circle(34, -14, 3, BROWN)


def broccoli(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A head of broccoli, 56 high."""
    with s.place(at, scale, label="broccoli"):
        s.polygon([(-9, 0), (-12, -30), (12, -30), (9, 0)], GREEN)
        for x, y, r in [(-16, -30, 13), (16, -30, 13), (-8, -42, 14), (9, -42, 14), (0, -30, 14)]:
            s.circle(x, y, r, LEAF)
        for x, y in [(-18, -32), (-8, -45), (8, -44), (17, -33), (0, -33)]:
            s.circle(x, y, 3, GREEN)


def umbrella(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A striped market umbrella, 260 high and 400 wide."""
    with s.place(at, scale, label="umbrella"):
        s.rect(-5, -240, 5, 0, BROWN)
        rim = [(-200 + i * 50, -172.0) for i in range(9)]
        for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(rim)):
            fill = CREAM if i % 2 else RED
            s.polygon([(0, -252), (x0, y0), (x1, y1)], fill)
            s.polygon(arc((x0 + x1) / 2, y0 - 1, 25, 14, 0, 180), fill)
        s.circle(0, -254, 6, BROWN)


def skis(s: Scene, at: Point, scale: float, fill: str, turn_deg: float, flip: bool = False) -> None:
    """A pair of skis, 120 long, in the skier's frame."""
    with s.place(at, scale, label="skis", turn_deg=turn_deg, flip=flip):
        s.line([(-56, -6), (48, -6), (58, -13)], 4.5, BROWN)
        s.line([(-62, 2), (46, 2), (57, -6)], 4.5, fill)


def snowman(s: Scene, at: Point, scale: float = 1.0) -> None:
    """A snowman with hat and scarf, 124 high."""
    with s.place(at, scale, label="snowman"):
        s.line([(-24, -58), (-52, -78)], 3, BROWN)
        s.line([(24, -58), (52, -76)], 3, BROWN)
        s.circle(0, -26, 30, SILVER)
        s.circle(-2, -27, 28, WHITE)
        s.circle(0, -64, 23, SILVER)
        s.circle(-2, -65, 21, WHITE)
        s.circle(0, -96, 17, WHITE)
        s.rect(-16, -84, 16, -76, RED, r=4)
        s.rect(4, -82, 13, -56, RED, r=3)
        s.circle(-6, -100, 2.2, INK)
        s.circle(6, -100, 2.2, INK)
        s.polygon([(0, -97), (20, -93), (0, -91)], ORANGE)
        for y in (-66, -54):
            s.circle(-4, y, 2.2, INK)
        s.rect(-20, -114, 20, -109, INK)
        s.rect(-13, -132, 13, -111, INK)


def house(s: Scene, at: Point, scale: float, wall: str, roof: str, snow: bool = False) -> None:
    """A small house, 110 high and 130 wide."""
    with s.place(at, scale, label="house"):
        s.rect(26, -112, 42, -70, BROWN)
        s.rect(-54, -62, 54, 0, wall)
        s.polygon([(-66, -60), (0, -114), (66, -60)], roof)
        if snow:
            s.polygon([(-66, -60), (0, -114), (66, -60), (46, -66), (0, -100), (-46, -66)], WHITE)
            s.rect(23, -117, 45, -109, WHITE, r=3)
        s.rect(-12, -36, 12, 0, BROWN)
        s.circle(7, -18, 2, YELLOW)
        for x in (-44, 22):
            s.rect(x, -46, x + 22, -24, YELLOW if snow else SKY)
            s.rect(x + 10, -46, x + 12, -24, wall)


def balloon(s: Scene, at: Point, scale: float, fills: Sequence[str]) -> None:
    """A hot air balloon, 176 high; the point is its basket's floor."""
    with s.place(at, scale, label="hot air balloon"):
        for x in (-11, 11):
            s.line([(x, -22), (x * 2.2, -66)], 1.8, INK)
        s.polygon([*arc(0, -112, 64, 62, 150, 390), (16, -50), (-16, -50)], fills[0])
        for x, rx in ((0, 43), (0, 18)):
            fill = fills[1] if rx > 20 else fills[0]
            s.polygon([*arc(x, -112, rx, 62, 150, 390), (rx * 0.25, -50), (-rx * 0.25, -50)], fill)
        s.rect(-17, -52, 17, -46, INK, r=2)
        s.rect(-14, -24, 14, 0, TAN, r=4)
        s.rect(-16, -26, 16, -19, BROWN, r=3)


def airplane(s: Scene, at: Point, scale: float = 1.0, flip: bool = False) -> None:
    """A small airliner in profile, 150 long, around its point."""
    with s.place(at, scale, label="airplane", turn_deg=-8, flip=flip):
        s.polygon([(-70, -8), (-84, -40), (-64, -40), (-44, -10)], RED)
        s.rect(-76, -14, 72, 12, WHITE, r=13)
        s.rect(-70, 2, 66, 6, RED)
        s.polygon([(-4, 4), (22, 4), (-18, 38), (-34, 38)], GREY)
        for i in range(7):
            s.rect(-48 + i * 14, -7, -41 + i * 14, 0, BLUE, r=2)
        s.polygon([(56, -11), (68, -8), (72, -2), (58, -2)], BLUE)


# Scenes


def harbour() -> Scene:
    """Three sailing boats before a lighthouse."""
    s = Scene(640, 480, SKY)
    sun(s, (92, 84))
    cloud(s, (300, 116), 1.1)
    cloud(s, (470, 70), 0.8)
    hill(s, 120, 262, 210, 66, "#9cc5a1")
    hill(s, 330, 262, 160, 42, "#84b58c")
    s.rect(0, 258, 640, 480, BLUE)
    s.rect(0, 258, 640, 300, "#5b9bbf")
    s.rect(0, 400, 640, 480, NAVY)
    s.polygon([(440, 300), (462, 268), (500, 258), (600, 256), (640, 262), (640, 312)], "#6b6f76")
    s.polygon([(440, 300), (640, 312), (640, 322), (452, 312)], "#53575e")
    lighthouse(s, (548, 260))
    for x, y in [(60, 290), (250, 282), (410, 330), (30, 370), (300, 388), (560, 360), (470, 452)]:
        s.line([(x - 16, y), (x - 5, y - 3), (x + 5, y), (x + 16, y - 3)], 2.4, "#a9d3e6")
    for x, y in [(120, 440), (320, 462), (600, 420)]:
        s.line([(x - 18, y), (x - 6, y - 4), (x + 6, y), (x + 18, y - 4)], 2.6, "#6f9fc4")
    sailboat(s, (318, 304), 0.62, PURPLE, PINK, flip=True)
    sailboat(s, (156, 364), 1.12, RED, YELLOW)
    sailboat(s, (432, 424), 1.34, TEAL, ORANGE)
    gull(s, (212, 62), 0.8)
    gull(s, (270, 158), 0.7, flip=True)
    gull(s, (404, 130), 0.9)
    return s


def kitchen() -> Scene:
    """A laid table with fruit and a cat on it."""
    s = Scene(640, 480, "#e8d9bd")
    for x in range(20, 640, 80):
        s.rect(x, 0, x + 8, 340, "#e2d0b0")
    s.rect(0, 340, 640, 480, "#b98a63")
    s.rect(0, 336, 640, 346, CREAM)
    s.rect(226, 36, 444, 214, WHITE)
    s.rect(236, 46, 434, 204, SKY)
    hill(s, 300, 204, 62, 52, GREEN)
    hill(s, 386, 204, 48, 36, LEAF)
    s.rect(434, 40, 446, 210, WHITE)
    cloud(s, (296, 100), 0.6)
    s.rect(331, 46, 339, 204, WHITE)
    s.polygon([(216, 30), (290, 30), (262, 120), (222, 196)], RED)
    s.polygon([(454, 30), (380, 30), (408, 120), (448, 196)], RED)
    s.rect(206, 24, 464, 33, BROWN, r=4)
    s.rect(214, 204, 456, 216, TAN)
    plant(s, (370, 205), 0.86, BLUE)
    clock(s, (110, 96), 42)
    s.rect(506, 110, 626, 120, BROWN)
    s.rect(520, 72, 550, 110, TEAL, r=5)
    s.rect(560, 60, 584, 110, YELLOW, r=5)
    s.rect(592, 80, 616, 110, PURPLE, r=5)
    chair(s, (110, 430), 1.1)
    with s.place(label="dining table"):
        s.rect(70, 330, 90, 476, BROWN)
        s.rect(550, 330, 570, 476, BROWN)
        s.rect(30, 316, 610, 338, TAN, r=6)
        s.rect(30, 332, 610, 338, BROWN, r=3)
    s.polygon([(210, 316), (430, 316), (430, 352), (410, 364), (230, 364), (210, 352)], "#cfe3d8")
    s.rect(210, 342, 430, 348, TEAL)
    orange(s, (334, 252), 24)
    apple(s, (284, 258), 23)
    apple(s, (372, 262), 22, GREEN)
    with s.place((326, 316), label="bowl"):
        s.polygon(arc(0, -50, 78, 46, 0, 180), BLUE)
        s.rect(-82, -54, 82, -44, SKY, r=5)
        s.rect(-30, -8, 30, 0, NAVY, r=3)
    banana(s, (208, 306), 0.96)
    cup(s, (126, 317), 0.95)
    cup(s, (440, 317), 0.95, YELLOW)
    cat(s, (540, 318), 1.16, flip=True)
    return s


def camp() -> Scene:
    """Two campers and a dog by the fire at night."""
    s = Scene(480, 640, "#16243d")
    s.rect(0, 210, 480, 640, "#1f3352")
    rng = random.Random(5)
    for _ in range(70):
        x, y = rng.randrange(480), rng.randrange(300)
        s.circle(x, y, 0.8 + rng.random(), CREAM)
    s.circle(372, 96, 44, "#fdf2c4")
    for x, y, r in [(358, 84, 9), (388, 108, 7), (376, 74, 5), (356, 112, 5)]:
        s.circle(x, y, r, "#ecdca0")
    s.polygon(
        [
            (0, 380),
            (90, 250),
            (170, 340),
            (270, 220),
            (380, 350),
            (440, 290),
            (480, 330),
            (480, 420),
            (0, 420),
        ],
        "#2c4468",
    )
    s.polygon([(244, 251), (270, 220), (297, 252), (280, 246), (268, 258), (256, 246)], SILVER)
    s.polygon([(74, 273), (90, 250), (110, 273), (98, 268), (88, 278), (82, 268)], SILVER)
    for x, y, scale in [
        (24, 424, 1.1),
        (78, 412, 0.8),
        (396, 414, 1.0),
        (452, 426, 1.3),
        (334, 404, 0.6),
        (128, 404, 0.6),
    ]:
        pine(s, (x, y), scale, "#1d3a3a")
    s.rect(0, 400, 480, 640, "#2f4a3b")
    s.ellipse(256, 560, 210, 74, "#4a5f3e")
    s.ellipse(258, 562, 128, 46, "#7b7440")
    tent(s, (150, 476), 1.22)
    s.line([(338, 566), (450, 566)], 22, BROWN)
    s.circle(338, 566, 11, TAN)
    s.line([(52, 584), (150, 584)], 22, BROWN)
    s.circle(150, 584, 11, TAN)
    person(
        s,
        (386, 604),
        1.3,
        shirt=TEAL,
        hair=INK,
        skin=DARK,
        hips_y=-38,
        knees=((24, -40), (28, -34)),
        feet=((26, -4), (32, 0)),
        hands=((38, -48), (30, -46)),
        flip=True,
    )
    person(
        s,
        (104, 620),
        1.3,
        shirt=RED,
        hair=YELLOW,
        trousers=BLUE,
        hips_y=-38,
        knees=((24, -40), (28, -34)),
        feet=((26, -4), (32, 0)),
        hands=((40, -62), (34, -48)),
    )
    campfire(s, (248, 586), 1.25)
    for x, y in [(240, 470), (262, 446), (250, 420), (270, 480)]:
        s.circle(x, y, 2, ORANGE)
    dog(s, (424, 630), 0.62, TAN, flip=True)
    return s


def street() -> Scene:
    """A bus, a car and cyclists on a city street."""
    s = Scene(640, 480, SKY)
    cloud(s, (520, 66), 0.9)
    cloud(s, (250, 50), 0.7)
    block(s, (0, 60, 130, 330), "#c7795a", CREAM, 5, 3)
    block(s, (142, 130, 260, 330), "#8fa6b8", "#dbe7ee", 4, 3)
    block(s, (272, 84, 366, 330), "#d9b26f", CREAM, 5, 2)
    block(s, (470, 110, 640, 330), "#9d8bb0", "#ece6f3", 4, 4)
    tree(s, (420, 332), 1.3)
    s.rect(0, 322, 640, 356, "#c9c3b8")
    s.rect(0, 350, 640, 358, "#a9a398")
    s.rect(0, 358, 640, 480, "#5b6570")
    for x in range(20, 640, 100):
        s.rect(x, 416, x + 56, 422, CREAM)
    person(
        s,
        (522, 348),
        0.95,
        shirt=PINK,
        trousers=PURPLE,
        hair=INK,
        skin=DARK,
        feet=((-14, 0), (14, 0)),
    )
    bicycle(s, (424, 349), 0.9, YELLOW)
    traffic_light(s, (604, 354), 1.12)
    car(s, (536, 410), 1.14, TEAL)
    bus(s, (202, 410), 1.16)
    with s.place((254, 468), 1.18):
        bicycle(s, (0, 0), 1.0, GREEN)
        person(
            s,
            (-14, 0),
            shirt=YELLOW,
            hair=BROWN,
            hips_y=-64,
            hands=((37, -66), (40, -64)),
            feet=((6, -24), (18, -8)),
            knees=((16, -50), (24, -42)),
        )
    return s


def balloons() -> Scene:
    """Hot air balloons over a village at dawn."""
    s = Scene(480, 640, "#fcd9b8")
    s.rect(0, 0, 480, 180, "#f7c6b0")
    s.rect(0, 180, 480, 320, "#fad0b3")
    s.circle(104, 430, 46, "#fff0cd")
    cloud(s, (90, 300), 0.8, "#fff3e6")
    cloud(s, (400, 390), 0.9, "#fff3e6")
    cloud(s, (252, 80), 0.7, "#fff3e6")
    hill(s, 100, 540, 230, 90, "#b79ac0")
    hill(s, 400, 540, 220, 120, "#a487b0")
    hill(s, 240, 600, 330, 110, "#86a878")
    s.rect(0, 560, 480, 640, LEAF)
    s.polygon([(200, 640), (236, 560), (262, 530), (272, 530), (264, 560), (270, 640)], "#e6d3a3")
    for x, y, scale in [(30, 584, 0.7), (452, 590, 0.8), (196, 556, 0.4), (64, 574, 0.5)]:
        tree(s, (x, y), scale, PINE)
    house(s, (130, 602), 0.8, CREAM, RED)
    house(s, (330, 590), 0.7, "#f0d9a8", BROWN)
    house(s, (396, 616), 0.84, WHITE, BLUE)
    balloon(s, (352, 500), 0.6, (TEAL, CREAM))
    balloon(s, (60, 262), 0.54, (PURPLE, PINK))
    balloon(s, (196, 420), 1.26, (RED, YELLOW))
    balloon(s, (372, 270), 0.94, (BLUE, WHITE))
    airplane(s, (140, 60), 0.66)
    gull(s, (292, 330), 0.62, WHITE)
    gull(s, (438, 360), 0.5, WHITE, flip=True)
    return s


def viaduct() -> Scene:
    """A steam train on a stone bridge."""
    s = Scene(640, 480, "#fbe3c0")
    s.rect(0, 0, 640, 90, "#f8d5ac")
    s.circle(118, 88, 40, "#fff3d6")
    s.polygon(
        [
            (0, 260),
            (110, 130),
            (200, 220),
            (330, 110),
            (450, 230),
            (540, 160),
            (640, 250),
            (640, 300),
            (0, 300),
        ],
        "#c99f9a",
    )
    hill(s, 90, 330, 230, 110, "#9fb98a")
    hill(s, 520, 330, 270, 120, "#8cab7a")
    s.rect(0, 324, 640, 480, GREEN)
    s.polygon([(250, 324), (350, 324), (420, 390), (520, 480), (120, 480), (200, 390)], BLUE)
    for x, y in [(290, 350), (320, 400), (230, 420), (400, 440), (200, 462)]:
        s.line([(x - 14, y), (x - 4, y - 3), (x + 6, y), (x + 16, y - 3)], 2.2, "#a9d3e6")
    for x, y, scale in [(40, 332, 0.9), (596, 336, 1.0), (560, 346, 0.7), (86, 346, 0.6)]:
        pine(s, (x, y), scale)
    bridge(s, 206, 352, 5, 640)
    for x, y, r in [(446, 92, 17), (416, 78, 21), (380, 70, 17), (346, 64, 12)]:
        s.circle(x, y, r, WHITE)
    train(s, (490, 207), 1.1)
    sailboat(s, (318, 424), 0.62, RED, CREAM)
    cow(s, (84, 450), 1.0)
    cow(s, (548, 424), 0.86, flip=True)
    for x, y in [(16, 410), (196, 372), (580, 456), (470, 380), (20, 466), (616, 384)]:
        tuft(s, (x, y), LEAF)
    for x, y, fill in [(30, 384, WHITE), (172, 416, PINK), (600, 470, PINK), (452, 404, WHITE)]:
        flower(s, (x, y), fill)
    return s


def park() -> Scene:
    """A dog in mid-air after a frisbee."""
    s = Scene(640, 426, SKY)
    cloud(s, (110, 92), 0.9)
    cloud(s, (330, 60), 0.7)
    hill(s, 130, 232, 240, 56, "#a5cf95")
    hill(s, 520, 232, 260, 74, "#94c285")
    s.rect(0, 228, 640, 426, GREEN)
    s.polygon(
        [(0, 392), (230, 330), (640, 300), (640, 326), (260, 362), (60, 426), (0, 426)], "#e6d3a3"
    )
    tree(s, (66, 262), 1.15)
    tree(s, (560, 250), 1.3, PINE)
    bench(s, (178, 292), 1.0)
    s.line([(590, 268), (470, 90)], 1.2, WHITE)
    kite(s, (470, 84), 1.1, RED, turn_deg=30)
    person(
        s, (604, 318), 0.72, shirt=ORANGE, trousers=BLUE, hair=YELLOW, hands=((-20, -74), (16, -44))
    )
    person(
        s,
        (92, 398),
        1.42,
        shirt=TEAL,
        hair=INK,
        hands=((-20, -44), (44, -72)),
        feet=((-16, 0), (18, 0)),
    )
    frisbee(s, (440, 186), -14)
    s.ellipse(372, 392, 66, 8, "#6c9c5e")
    dog(s, (360, 330), 1.18, paws=((-66, -18), (-56, -8), (56, -30), (64, -42)), turn_deg=-30)
    for x, y in [(210, 414), (520, 398), (600, 380), (30, 330), (470, 340)]:
        tuft(s, (x, y), LEAF)
    for x, y, fill in [
        (560, 414, PINK),
        (586, 404, WHITE),
        (250, 320, WHITE),
        (18, 412, PINK),
        (500, 416, WHITE),
    ]:
        flower(s, (x, y), fill)
    return s


def desk() -> Scene:
    """A tidy desk with a laptop under a lamp."""
    s = Scene(640, 480, "#37506b")
    s.rect(80, 50, 236, 166, TAN)
    s.rect(90, 60, 226, 156, SKY)
    s.polygon(
        [(90, 156), (90, 124), (136, 84), (170, 120), (192, 100), (226, 136), (226, 156)], PURPLE
    )
    s.circle(200, 82, 9, YELLOW)
    s.rect(376, 168, 624, 180, TAN)
    s.rect(396, 180, 404, 196, BROWN)
    s.rect(596, 180, 604, 196, BROWN)
    book(s, (394, 96, 418, 168), RED)
    book(s, (419, 84, 440, 168), YELLOW)
    book(s, (441, 102, 469, 168), TEAL)
    book(s, (490, 92, 512, 168), PINK, turn_deg=-14)
    plant(s, (572, 168), 0.86, ORANGE)
    clock(s, (312, 82), 38)
    s.rect(0, 388, 640, 408, TAN)
    s.rect(0, 402, 640, 410, BROWN)
    s.rect(0, 410, 640, 480, "#9a6a43")
    for x in (40, 350):
        s.rect(x, 424, x + 250, 480, TAN, r=6)
        s.rect(x + 105, 446, x + 145, 454, BROWN, r=4)
    s.polygon([(138, 190), (206, 226), (290, 389), (60, 389)], "#47627e")
    lamp(s, (78, 390), 1.28)
    laptop(s, (314, 386), 1.18)
    book(s, (462, 366, 592, 389), BLUE)
    book(s, (474, 344, 580, 366), ORANGE)
    cup(s, (528, 345), 0.9)
    return s


def orchard() -> Scene:
    """A shepherd, a dog and five sheep under blossom."""
    s = Scene(640, 480, "#cdeaf2")
    cloud(s, (150, 76), 1.0)
    cloud(s, (480, 58), 0.8)
    hill(s, 160, 236, 300, 70, "#b4d8a2")
    hill(s, 540, 236, 260, 92, "#a2cc90")
    s.rect(0, 232, 640, 480, GREEN)
    s.rect(0, 360, 640, 480, "#73a564")
    for x in range(0, 660, 48):
        s.rect(x, 206, x + 7, 250, TAN)
    for y in (214, 230):
        s.rect(0, y, 640, y + 5, TAN)
    for x, y, scale in [
        (60, 270, 1.15),
        (214, 262, 1.05),
        (368, 262, 1.05),
        (516, 262, 1.1),
        (624, 280, 1.1),
    ]:
        tree(s, (x, y), scale, "#f3b8c4", WHITE)
    for x, y in [(100, 300), (240, 292), (330, 310), (420, 290), (560, 300), (30, 340), (480, 330)]:
        s.ellipse(x, y, 4, 2, "#f7d3da")
    sheep(s, (150, 330), 0.8, grazing=True)
    sheep(s, (300, 318), 0.74, flip=True)
    sheep(s, (474, 336), 0.84, grazing=True, flip=True)
    sheep(s, (90, 430), 1.16)
    sheep(s, (276, 446), 1.2, grazing=True)
    s.line([(606, 442), (606, 290), (600, 278), (590, 278), (586, 288)], 4.5, BROWN)
    person(
        s,
        (562, 440),
        1.4,
        shirt=BLUE,
        trousers=NAVY,
        hair=RED,
        hands=((-19, -42), (31, -66)),
        shoes=INK,
    )
    dog(s, (450, 448), 0.86, INK, "#47586a", flip=True)
    for x, y in [(24, 462), (190, 400), (390, 380), (340, 466), (620, 462), (200, 470), (520, 380)]:
        tuft(s, (x, y), LEAF)
    for x, y, fill in [
        (20, 388, WHITE),
        (180, 462, YELLOW),
        (390, 470, WHITE),
        (500, 466, PINK),
        (616, 380, WHITE),
    ]:
        flower(s, (x, y), fill)
    return s


def football() -> Scene:
    """A shot at goal before full stands."""
    s = Scene(640, 427, SKY)
    s.rect(0, 26, 640, 150, "#56606c")
    rng = random.Random(11)
    shirts, skins = (RED, YELLOW, BLUE, WHITE, TEAL, PURPLE, ORANGE), (FAIR, DARK, TAN)
    with s.place(label="person", is_group=True):
        for row in range(4):
            for col in range(30):
                x, y = 14 + col * 21.2 + (row % 2) * 9 + rng.random() * 3, 58 + row * 26
                if x > 626:
                    continue
                shirt, skin = rng.choice(shirts), rng.choice(skins)
                s.rect(x - 8, y - 3, x + 8, y + 18, shirt, r=6)
                s.circle(x, y - 10, 7, rng.choice((INK, BROWN, TAN)))
                s.circle(x, y - 8, 5.5, skin)
    s.rect(0, 18, 640, 28, INK)
    s.rect(0, 148, 640, 176, NAVY)
    for i, fill in enumerate((RED, YELLOW, TEAL, ORANGE, RED, YELLOW)):
        s.rect(12 + i * 106, 154, 98 + i * 106, 170, fill, r=4)
    for i in range(-4, 4):
        band = [
            (320 + i * 80, 176),
            (400 + i * 80, 176),
            (480 + i * 160, 427),
            (320 + i * 160, 427),
        ]
        s.polygon(band, GREEN if i % 2 else "#8fbe7f")
    s.line([(0, 232), (640, 232)], 3, WHITE)
    s.line([(90, 232), (40, 330), (600, 330), (550, 232)], 3, WHITE)
    goal(s, (320, 236), 1.2)
    person(
        s,
        (352, 240),
        0.72,
        shirt=YELLOW,
        trousers=INK,
        hair=BROWN,
        hands=((-34, -86), (36, -90)),
        feet=((-16, 0), (16, 0)),
    )
    person(
        s,
        (196, 288),
        0.88,
        shirt=RED,
        trousers=WHITE,
        hair=INK,
        skin=DARK,
        feet=((-16, 0), (16, -4)),
        hands=((-20, -52), (24, -58)),
    )
    person(
        s,
        (492, 300),
        0.92,
        shirt=BLUE,
        trousers=WHITE,
        hair=YELLOW,
        feet=((-14, -6), (18, 0)),
        hands=((-26, -54), (22, -56)),
        flip=True,
    )
    person(
        s,
        (92, 394),
        1.22,
        shirt=BLUE,
        trousers=WHITE,
        hair=BROWN,
        feet=((-22, -10), (18, 0)),
        hands=((-26, -58), (28, -64)),
    )
    person(
        s,
        (540, 408),
        1.3,
        shirt=RED,
        trousers=WHITE,
        hair=BROWN,
        feet=((-16, 0), (20, -8)),
        hands=((-30, -56), (22, -52)),
        flip=True,
    )
    person(
        s,
        (290, 406),
        1.34,
        shirt=RED,
        trousers=WHITE,
        hair=INK,
        feet=((-24, -4), (36, -16)),
        hands=((-38, -64), (34, -62)),
        turn_deg=-6,
    )
    ball(s, (382, 372), 13)
    return s


def slope() -> Scene:
    """Two skiers below a cabin in the snow."""
    s = Scene(480, 640, "#a9d4ea")
    sun(s, (92, 90), 0.8)
    cloud(s, (360, 96), 0.9)
    s.polygon(
        [(0, 330), (130, 150), (220, 260), (330, 110), (480, 300), (480, 420), (0, 420)], "#7f9cb8"
    )
    s.polygon([(290, 164), (330, 110), (372, 164), (350, 156), (332, 180), (312, 156)], WHITE)
    s.polygon([(98, 194), (130, 150), (166, 194), (146, 188), (130, 206), (116, 188)], WHITE)
    s.polygon([(0, 300), (120, 290), (280, 340), (480, 300), (480, 640), (0, 640)], "#d3e4ef")
    for x, y, scale in [
        (30, 330, 0.8),
        (84, 322, 0.6),
        (440, 330, 0.9),
        (398, 344, 0.6),
        (250, 350, 0.5),
    ]:
        pine(s, (x, y), scale, PINE, WHITE)
    house(s, (160, 346), 0.94, TAN, BROWN, snow=True)
    s.polygon([(0, 346), (180, 352), (480, 420), (480, 640), (0, 640)], "#e4eff6")
    s.polygon([(0, 520), (200, 560), (480, 640), (0, 640)], WHITE)
    for dy in (0, 14):
        s.line([(480, 352 + dy), (420, 372 + dy), (352, 424 + dy), (300, 440 + dy)], 3, "#c9dbe6")
        s.line([(300, 472 + dy), (240, 470 + dy), (160, 520 + dy), (120, 536 + dy)], 3, "#c9dbe6")
    skier(s, (352, 424), 0.74, RED, YELLOW, 22)
    skier(s, (196, 578), 1.34, BLUE, ORANGE, 14)
    snowman(s, (404, 590), 1.06)
    rng = random.Random(3)
    for _ in range(60):
        s.circle(rng.randrange(480), rng.randrange(300), 1.6 + rng.random(), WHITE)
    return s


def skier(s: Scene, at: Point, scale: float, shirt: str, paint: str, turn_deg: float) -> None:
    """A person on skis with poles, going left; two objects, the poles being scenery."""
    with s.place(at, scale, flip=True, turn_deg=-turn_deg):
        skis(s, (4, 0), 1.0, paint, 0)
        s.line([(34, -50), (6, 2)], 2.6, INK)
        person(
            s,
            (0, -3),
            shirt=shirt,
            trousers=NAVY,
            hair=YELLOW if shirt == RED else PURPLE,
            hips_y=-38,
            knees=((14, -24), (18, -22)),
            feet=((-2, 0), (6, 0)),
            hands=((32, -50), (30, -46)),
            turn_deg=6,
        )
        s.line([(28, -48), (-30, -10)], 2.6, INK)


def market() -> Scene:
    """A fruit stall under a striped umbrella."""
    s = Scene(640, 480, "#f3e2c4")
    block(s, (0, 30, 170, 380), "#e0b48c", "#8fb8c9", 3, 2)
    block(s, (180, 70, 420, 380), "#d8c7a6", "#8fb8c9", 3, 4)
    block(s, (430, 40, 640, 380), "#cf9f86", "#8fb8c9", 3, 3)
    s.rect(0, 372, 640, 480, "#b8ab98")
    for x, y in [(30, 400), (110, 470), (590, 462), (620, 396), (70, 440)]:
        s.rect(x - 22, y - 5, x + 22, y + 5, "#a99c89", r=5)
    umbrella(s, (320, 330), 1.22)
    person(
        s, (250, 356), 1.66, shirt=GREEN, trousers=INK, hair=BROWN, hands=((-20, -60), (34, -68))
    )
    s.polygon([(96, 300), (544, 300), (566, 324), (74, 324)], TAN)
    s.rect(82, 322, 558, 460, BROWN)
    for x in range(82, 558, 68):
        s.rect(x, 326, x + 62, 456, "#8e5f3a")
    with s.place(label="apple", is_group=True):
        for row, count in enumerate((7, 6, 5, 3)):
            for i in range(count):
                left = 176 + (i - (count - 1) / 2) * 21 + row
                with s.place((left, 294 - row * 15), 0.76):
                    apple_shape(s, GREEN if (i * 2 + row) % 7 == 3 else RED)
    banana(s, (308, 304), 0.92, turn_deg=-4)
    banana(s, (316, 290), 0.92, turn_deg=4)
    banana(s, (310, 276), 0.92, turn_deg=-3)
    s.polygon([(96, 296), (258, 296), (252, 330), (102, 330)], YELLOW)
    s.rect(92, 292, 262, 300, TAN)
    broccoli(s, (386, 304), 0.92)
    broccoli(s, (436, 306), 1.0)
    orange(s, (486, 288), 18)
    orange(s, (524, 288), 18)
    orange(s, (505, 260), 18)
    s.rect(466, 304, 546, 312, RED, r=3)
    person(
        s,
        (594, 470),
        1.66,
        shirt=PURPLE,
        trousers=NAVY,
        hair=INK,
        skin=DARK,
        hands=((-18, -44), (30, -70)),
        flip=True,
    )
    return s


# The release


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene and what five people said about it."""

    draw: Callable[[], Scene]
    captions: tuple[str, str, str, str, str]


PICTURES = (
    Picture(
        harbour,
        (
            "Three sailing boats on blue water near a red and white lighthouse.",
            "Gulls fly over sailboats on a bright sunny day.",
            "A lighthouse stands on a rock while small boats sail past.",
            "Sailboats with coloured sails pass a striped lighthouse.",
            "The sun is shining on a calm bay with a few boats and seagulls",
        ),
    ),
    Picture(
        kitchen,
        (
            "An orange cat sits on a kitchen table near a bowl of fruit.",
            "A cat on the table beside two steaming cups and a fruit bowl.",
            "A kitchen with red curtains, a wall clock and a laid wooden table.",
            "Two cups of coffee, a banana and a blue bowl of fruit on a table.",
            "The cat has climbed onto the table where the coffee is served",
        ),
    ),
    Picture(
        camp,
        (
            "Two people sit on logs around a campfire at night.",
            "An orange tent stands under a full moon and a sky full of stars.",
            "Campers and their little dog warm themselves by a fire.",
            "A camp site with a tent, a fire and snowy mountains behind it.",
            "Friends camping in the woods beneath the moon",
        ),
    ),
    Picture(
        street,
        (
            "A cyclist in a yellow sweater rides beside a red bus.",
            "A city street with a bus, a small car and two bicycles.",
            "A red bus drives down the road past tall buildings.",
            "Somebody walks along the pavement toward a green traffic light.",
            "A yellow bike is parked by a tree while traffic goes by",
        ),
    ),
    Picture(
        balloons,
        (
            "Four hot air balloons float above a small village.",
            "A red and yellow balloon drifts over houses and hills.",
            "An airplane flies high above colourful hot air balloons.",
            "Hot air balloons over three houses as the sun comes up.",
            "Two birds fly between balloons in a pink morning sky",
        ),
    ),
    Picture(
        viaduct,
        (
            "A red steam engine pulls three carriages across a stone bridge.",
            "A train crosses a viaduct above a river with a sailing boat.",
            "Two cows stand by the river while a train goes over the bridge.",
            "An old-fashioned train puffs smoke as it crosses the arches.",
            "A little boat sails on the river below a railway bridge",
        ),
    ),
    Picture(
        park,
        (
            "A brown dog leaps into the air to catch a frisbee.",
            "A person throws a red frisbee for a dog in the park.",
            "A child flies a kite while a dog jumps for a disc.",
            "A dog with a red collar is jumping near a park bench.",
            "Two people and a dog enjoying a sunny day at the park",
        ),
    ),
    Picture(
        desk,
        (
            "A laptop on a wooden desk with a red lamp beside it.",
            "A cup of coffee is standing on top of two books.",
            "A tidy desk below a shelf with books and a potted plant.",
            "A home office with a computer, a reading lamp and a wall clock.",
            "Desk with a laptop, a lamp and a hot drink, picture of mountains on the wall",
        ),
    ),
    Picture(
        orchard,
        (
            "Five sheep in an orchard full of pink blossom.",
            "A shepherd with a crook stands next to a black dog.",
            "Some sheep are grazing in front of a row of blossoming trees.",
            "A person and a dog look after a small flock of sheep.",
            "Sheep on the grass, a wooden fence and pink trees behind them",
        ),
    ),
    Picture(
        football,
        (
            "A player in a red shirt kicks the ball toward the goal.",
            "The goalkeeper raises both arms as a shot comes in.",
            "Red and blue teams play football in front of a packed stand.",
            "Soccer players run on a striped green field.",
            "A crowd watches a football match from the stands",
        ),
    ),
    Picture(
        slope,
        (
            "Two skiers come down a snowy slope past a snowman.",
            "A person in a blue sweater skis downhill with another skier behind.",
            "A wooden cabin with a snow-covered roof among fir trees.",
            "A snowman with a top hat and a red scarf watches the skiers.",
            "Snow falls lightly on skiers, a cabin and tall mountains",
        ),
    ),
    Picture(
        market,
        (
            "A fruit stall under a large red and white umbrella.",
            "A customer stands at a market stall with apples, bananas and oranges.",
            "A pile of apples, some broccoli and oranges on a wooden counter.",
            "The seller waits behind a heap of red and green apples.",
            "Two people at an outdoor market stand that sells fruit and vegetables",
        ),
    ),
)

SUPERCATEGORIES = {
    "person": "person",
    "bicycle": "vehicle",
    "car": "vehicle",
    "airplane": "vehicle",
    "bus": "vehicle",
    "train": "vehicle",
    "boat": "vehicle",
    "hot air balloon": "vehicle",
    "traffic light": "outdoor",
    "bench": "outdoor",
    "lighthouse": "outdoor",
    "house": "outdoor",
    "bridge": "outdoor",
    "tent": "outdoor",
    "campfire": "outdoor",
    "snowman": "outdoor",
    "bird": "animal",
    "cat": "animal",
    "dog": "animal",
    "sheep": "animal",
    "cow": "animal",
    "umbrella": "accessory",
    "frisbee": "sports",
    "skis": "sports",
    "sports ball": "sports",
    "goal": "sports",
    "kite": "sports",
    "cup": "kitchen",
    "bowl": "kitchen",
    "banana": "food",
    "apple": "food",
    "orange": "food",
    "broccoli": "food",
    "chair": "furniture",
    "potted plant": "furniture",
    "dining table": "furniture",
    "laptop": "electronic",
    "book": "indoor",
    "clock": "indoor",
    "lamp": "indoor",
}  # a category's id is its place here, from 1; COCO's own ids are others

LICENSE = {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 9, "name": "CC0 1.0"}
DATE = "2026-11-22 00:00:00"


def file_name(image_id: int) -> str:
    """An image's name in ``images/``."""
    return f"sample_{image_id:012d}.png"


def release(scenes: Sequence[Scene]) -> dict[str, dict[str, Any]]:
    """The annotation files' names and contents, for the scenes of `PICTURES` in their order."""
    info = {
        "description": "mminstruct sample: twelve drawn scenes",
        "version": "1.0",
        "year": int(DATE[:4]),
        "contributor": "mminstruct",
        "date_created": DATE[:10].replace("-", "/"),
    }
    images = [
        {
            "license": LICENSE["id"],
            "file_name": file_name(image_id),
            "height": scene.height,
            "width": scene.width,
            "date_captured": DATE,
            "id": image_id,
        }
        for image_id, scene in enumerate(scenes, start=1)
    ]
    head: dict[str, Any] = {"info": info, "licenses": [LICENSE], "images": images}
    categories = [
        {"supercategory": group, "id": category_id, "name": name}
        for category_id, (name, group) in enumerate(SUPERCATEGORIES.items(), start=1)
    ]
    instances = {"annotations": instance_entries(scenes), "categories": categories}
    return {
        "captions_train.json": {**head, "annotations": caption_entries()},
        "instances_train.json": {**head, **instances},
    }


def caption_entries() -> list[dict[str, Any]]:
    """All captions as COCO writes them, numbered from 1."""
    pairs = [(i, text) for i, picture in enumerate(PICTURES, start=1) for text in picture.captions]
    return [
        {"image_id": image_id, "id": number, "caption": text}
        for number, (image_id, text) in enumerate(pairs, start=1)
    ]


def instance_entries(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    """All objects as COCO writes them, numbered from 1; every mask is an uncompressed RLE."""
    category_ids = {name: number for number, name in enumerate(SUPERCATEGORIES, start=1)}
    found = [
        (image_id, scene, thing)
        for image_id, scene in enumerate(scenes, start=1)
        for thing in scene.things()
    ]
    return [
        {
            "segmentation": {"counts": thing.counts, "size": [scene.height, scene.width]},
            "area": thing.area,
            "iscrowd": int(thing.is_group),
            "image_id": image_id,
            "bbox": list(thing.bbox_xywh),
            "category_id": category_ids[thing.label],
            "id": number,
        }
        for number, (image_id, scene, thing) in enumerate(found, start=1)
    ]


def to_text(document: dict[str, Any]) -> str:
    """JSON with one entry of a list to a line."""
    parts = []
    for key, value in document.items():
        lines = ",\n".join(json.dumps(v) for v in value) if isinstance(value, list) else ""
        parts.append(f'"{key}": ' + (f"[\n{lines}\n]" if lines else json.dumps(value)))
    return "{" + ",\n".join(parts) + "}\n"


def to_palette(image: Image.Image) -> Image.Image:
    """The picture in its most frequent colours, of which no two are nearly the same.

    Median cut would be shorter, but gives a wide sky many entries and a small lamp none.
    """
    pixels = iter(image.convert("RGB").tobytes())
    colors = Counter(zip(pixels, pixels, pixels, strict=True))
    chosen: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    for color in sorted(colors, key=lambda color: (-colors[color], color)):
        chosen.setdefault((color[0] >> 3, color[1] >> 3, color[2] >> 3), color)
    entries = list(chosen.values())[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in entries for channel in color])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def contact_sheet(images: Sequence[Image.Image], rows: int = 3, width: int = 1200) -> Image.Image:
    """All pictures in rows that are equally wide, RGB."""
    gap, per_row, y = 8, math.ceil(len(images) / rows), 0
    sheet = Image.new("RGB", (width, width * 2), WHITE)
    for start in range(0, len(images), per_row):
        row = images[start : start + per_row]
        free = width - gap * (len(row) - 1)
        height = round(free / sum(image.width / image.height for image in row))
        edges = [0.0]
        for image in row:
            edges.append(edges[-1] + height * image.width / image.height)
        for i, (image, (left, right)) in enumerate(zip(row, pairwise(edges), strict=True)):
            left, right = (round(edge * free / edges[-1]) for edge in (left, right))
            thumbnail = image.resize((right - left, height), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (left + i * gap, y))
        y += height + gap
    return sheet.crop((0, 0, width, y - gap))


def main(argv: Sequence[str] | None = None) -> None:
    """Draws everything and writes it below a folder."""
    parser = argparse.ArgumentParser(description="Draw the bundled sample.")
    parser.add_argument("out_dir", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of all pictures too")
    options = parser.parse_args(argv)
    scenes = [picture.draw() for picture in PICTURES]
    images = [scene.image() for scene in scenes]
    for folder in ("images", "annotations"):
        (options.out_dir / folder).mkdir(parents=True, exist_ok=True)
    for image_id, image in enumerate(images, start=1):
        to_palette(image).save(options.out_dir / "images" / file_name(image_id), optimize=True)
    for name, document in release(scenes).items():
        path = options.out_dir / "annotations" / name
        path.write_text(to_text(document), encoding="utf-8", newline="\n")
    if options.sheet:
        to_palette(contact_sheet(images)).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
