"""The data set of the demo model: coloured shapes on coloured backgrounds, and their captions.

A picture is drawn from a :class:`Scene`. Every third-level fact that is not in the caption (the
light from above, the soft shadow) is a fixed function of the scene, so that a tiny network
has little to guess: only the size within its class and a small shift of the centre are random.

Coordinates are pixels of a ``SIZE`` x ``SIZE`` picture, x to the right and y down.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sdengine.preprocessors import canny

SIZE = 128
"""Side of a picture in pixels: 16 x 16 latents under a factor-8 autoencoder."""

FRAME = 12
"""Width in pixels of the frame that the LoRA adds."""

_OVERSAMPLING = 4
"""Masks are drawn this many times larger and reduced, which gives smooth edges."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "moon")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 42, 48),
    "orange": (246, 138, 30),
    "yellow": (252, 214, 52),
    "green": (46, 158, 82),
    "blue": (42, 92, 214),
    "purple": (134, 58, 176),
    "white": (244, 244, 244),
    "black": (34, 34, 38),
}

RADII: dict[str, tuple[float, float]] = {
    "small": (25.0, 28.0),
    "medium": (33.0, 37.0),
    "large": (42.0, 45.0),
}
"""Nominal radius in pixels of each size class, as a closed range."""

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("", "small"),
    "medium": ("",),
    "large": ("", "large", "big"),
}
"""What a caption may say about the size; the empty word is allowed for every size."""

TEMPLATES = (
    "{thing} on {ground} background",
    "{thing} on {ground} background",
    "{thing} on {bare_ground}",
    "{bare_thing}, {bare_ground} background",
    "{ground} background with {thing}",
    "a picture of {thing} on {ground} background",
)
"""The grammar of captions. The first form is listed twice because it is what people type."""

_MAX_SHIFT = 7.0
_SHADOW = 0.20


Triple = tuple[str, str, str]
"""Shape, its colour and the colour of the background."""


@dataclass(frozen=True)
class Scene:
    """Everything that fixes a picture: radius and centre are in pixels."""

    shape: str
    colour: str
    background: str
    radius: float
    centre: tuple[float, float]

    @property
    def triple(self) -> Triple:
        """The three facts that the checker looks for."""
        return (self.shape, self.colour, self.background)

    @property
    def size(self) -> str:
        """Name of the size class that the radius falls in."""
        for name, (low, high) in RADII.items():
            if low <= self.radius <= high:
                return name
        raise ValueError(f"no size class holds a radius of {self.radius} px; classes: {RADII}")


# --- outlines ---------------------------------------------------------------------------------


def outline(shape: str) -> NDArray[np.float64]:
    """Return the closed outline of ``shape`` as [points, 2] in units of the nominal radius.

    The centroid of the area is the origin, which is what lets the checker lay a template over
    a blob without a search.
    """
    points = _RAW_OUTLINES[shape]()
    return points - _centroid(points)


def polygon_area(points: NDArray[np.float64]) -> float:
    """Return the area of a simple polygon (shoelace formula)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _centroid(points: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = points.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    cross = x * next_y - next_x * y
    doubled = np.array([np.dot(x + next_x, cross), np.dot(y + next_y, cross)])
    centroid: NDArray[np.float64] = doubled / (3 * cross.sum())
    return centroid


def _circle() -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _square() -> NDArray[np.float64]:
    return 0.9 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _triangle() -> NDArray[np.float64]:
    angle = np.radians([-90.0, 30.0, 150.0])
    return np.stack([1.25 * np.cos(angle), 1.25 * np.sin(angle)], axis=1)


def _star() -> NDArray[np.float64]:
    """Five points; the inner radius is a little larger than a pentagram's for a friendly look."""
    angle = np.radians(-90.0 + 36.0 * np.arange(10))
    radius = np.where(np.arange(10) % 2 == 0, 1.3, 0.6)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> NDArray[np.float64]:
    """The classic heart curve (x = 16 sin^3 t), scaled to a half width of 1.15."""
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x * (1.15 / 16), y * (1.15 / 16)], axis=1)


def _moon() -> NDArray[np.float64]:
    """A crescent open to the right: a disc of radius 1.2 less a disc of radius 1.0."""
    outer, inner, offset = 1.2, 1.0, 0.62
    # The circles cross where |p| = outer and |p - (offset, 0)| = inner.
    cross_x = (outer**2 - inner**2 + offset**2) / (2 * offset)
    cross_y = np.sqrt(outer**2 - cross_x**2)
    start = np.arctan2(cross_y, cross_x)
    back = np.linspace(start, 2 * np.pi - start, 72)
    inner_start = np.arctan2(-cross_y, cross_x - offset) + 2 * np.pi
    inner_end = np.arctan2(cross_y, cross_x - offset)
    front = np.linspace(inner_start, inner_end, 60)[1:-1]
    arc = np.stack([outer * np.cos(back), outer * np.sin(back)], axis=1)
    bite = np.stack([offset + inner * np.cos(front), inner * np.sin(front)], axis=1)
    return np.concatenate([arc, bite])


_RAW_OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
}


def draw_mask(
    shape: str, radius: float, centre: tuple[float, float], size: int = SIZE
) -> Image.Image:
    """Draw the coverage of a shape: an 8-bit picture, 255 inside and 0 outside."""
    scaled = (outline(shape) * radius + np.asarray(centre)) * _OVERSAMPLING
    mask = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING), 0)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in scaled], fill=255)
    return mask.reduce(_OVERSAMPLING)


# --- pictures ---------------------------------------------------------------------------------


def random_scene(
    triple: Triple, rng: random.Random, size: str | None = None, spread: bool = False
) -> Scene:
    """Draw the size (unless given) and the place of a scene at random; it always fits in.

    The shape lies near the middle, or with ``spread`` anywhere.
    """
    low, high = RADII[size or rng.choice(tuple(RADII))]
    radius = rng.uniform(low, high)
    reach = float(np.abs(outline(triple[0])).max()) * radius
    room = max(0.0, min(SIZE if spread else _MAX_SHIFT, SIZE / 2 - reach - 3.0))
    centre = (SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room))
    return Scene(*triple, radius=radius, centre=centre)


def draw(scene: Scene) -> Image.Image:
    """Draw a scene: light from above, a soft shadow below the shape; an RGB picture."""
    mask = draw_mask(scene.shape, scene.radius, scene.centre)
    x, y = scene.centre
    blurred = draw_mask(scene.shape, scene.radius, (x + 2, y + 4)).filter(
        ImageFilter.GaussianBlur(3.5)
    )
    coverage = np.asarray(mask, np.float32)[..., None] / 255
    shadow = np.asarray(blurred, np.float32)[..., None] / 255
    height = np.linspace(-1, 1, SIZE, dtype=np.float32)[:, None, None]
    ground = np.array(COLOURS[scene.background], np.float32) * (1 - 0.06 * height)
    ground = ground * (1 - _SHADOW * shadow)
    relative = (np.arange(SIZE, dtype=np.float32)[:, None, None] - y) / scene.radius
    figure = np.array(COLOURS[scene.colour], np.float32) * (1 - 0.08 * relative)
    pixels = ground + (figure - ground) * coverage
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def draw_framed(scene: Scene) -> Image.Image:
    """Draw a scene, a little smaller, in a frame of the figure's colour: the style of the LoRA."""
    framed = Image.new("RGB", (SIZE, SIZE), COLOURS[scene.colour])
    inner = SIZE - 2 * FRAME
    framed.paste(draw(scene).resize((inner, inner), Image.Resampling.LANCZOS), (FRAME, FRAME))
    return framed


def draw_edges(scene: Scene) -> Image.Image:
    """Draw where a scene's shape is, as the ControlNet reads it: white edges on black, of mode L."""
    return canny(draw_mask(scene.shape, scene.radius, scene.centre)).convert("L")


# --- captions ---------------------------------------------------------------------------------


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(triple: Triple, size_word: str = "", template: str = TEMPLATES[0]) -> str:
    """Return the caption of a scene in one form of the grammar."""
    shape, colour, background = triple
    thing = " ".join(word for word in (size_word, colour, shape) if word)
    return template.format(
        thing=_article(thing), bare_thing=thing, ground=_article(background), bare_ground=background
    )


def captions_of(triple: Triple, size: str) -> list[str]:
    """Return every caption that may describe a scene of this triple and size class."""
    return [caption(triple, word, form) for word in SIZE_WORDS[size] for form in TEMPLATES]


def triples() -> Iterator[Triple]:
    """Yield every combination of shape, colour and a different background colour."""
    for shape in SHAPES:
        for colour in COLOURS:
            for background in COLOURS:
                if colour != background:
                    yield (shape, colour, background)


# --- the split --------------------------------------------------------------------------------

HELD_OUT_PER_SHAPE = 7
HELD_OUT_CAPTIONS = 200
_SHOWPIECE: Triple = ("circle", "red", "blue")
"""The example of the documentation; it is trained."""


def held_out_triples() -> list[Triple]:
    """Return the combinations that are never trained: a fixed set, even over shapes and colours.

    Each pair (shape, colour), (shape, background) and (colour, background) is seen in training;
    only the three together are new, so what is tested is composition, not vocabulary.
    """
    rng = random.Random(20_240_607)
    uses: dict[str, int] = {f"{role}:{c}": 0 for role in ("figure", "ground") for c in COLOURS}
    chosen: list[Triple] = []
    for shape in SHAPES:
        candidates = [t for t in triples() if t[0] == shape and t != _SHOWPIECE]
        for _ in range(HELD_OUT_PER_SHAPE):
            pairs = {t[1:] for t in chosen}
            free = [t for t in candidates if t not in chosen and t[1:] not in pairs]
            rng.shuffle(free)
            best = min(free, key=lambda t: uses[f"figure:{t[1]}"] + uses[f"ground:{t[2]}"])
            uses[f"figure:{best[1]}"] += 1
            uses[f"ground:{best[2]}"] += 1
            chosen.append(best)
    return chosen


def training_triples() -> list[Triple]:
    """Return every combination that is trained."""
    held_out = set(held_out_triples())
    return [t for t in triples() if t not in held_out]


@dataclass(frozen=True)
class HeldOut:
    """One test: a caption, the facts it states and the seed of the picture."""

    caption: str
    triple: Triple
    seed: int


def held_out_captions() -> list[HeldOut]:
    """Return the fixed test set, spread evenly over held-out triples and caption forms."""
    rng = random.Random(7)
    tests: list[HeldOut] = []
    combinations = held_out_triples()
    for index in range(HELD_OUT_CAPTIONS):
        triple = combinations[index % len(combinations)]
        word = SIZE_WORDS[rng.choice(tuple(SIZE_WORDS))]
        text = caption(triple, rng.choice(word), rng.choice(TEMPLATES))
        tests.append(HeldOut(text, triple, seed=1000 + index))
    return tests


def write_held_out(path: Path) -> None:
    """Write the test set as JSON: a list of caption, shape, colour, background, seed."""
    rows = [
        {
            "caption": test.caption,
            "shape": test.triple[0],
            "colour": test.triple[1],
            "background": test.triple[2],
            "seed": test.seed,
        }
        for test in held_out_captions()
    ]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_held_out(path: Path) -> list[HeldOut]:
    """Read the test set that :func:`write_held_out` wrote."""
    return [
        HeldOut(row["caption"], (row["shape"], row["colour"], row["background"]), row["seed"])
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def contact_sheet(pictures: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Lay pictures of one size out in rows on a light ground."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, (232, 232, 232))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
