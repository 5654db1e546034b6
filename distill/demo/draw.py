"""The drawing of the demo's clips: 48 frames of 64 x 64 pixels from a clip's script, four per second.

Shots and fillers begin on whole seconds, so a sampler that takes one frame a second sees twelve moments of known
content, and tells every motion from them (a spin turns 80 degrees a second, a bounce is up in one second and down in
the next). Pillow draws everything, and the random generator depends on the seed and the clip's number only.
"""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from distill.demo.corpus import BACKGROUNDS, COLOURS, SECONDS, ClipSpec, Filler, Shot
from distill.demo.emoji import sprite

SIZE = 64
FPS = 4
NOISE = 2.0  # grey levels, of every frame; more makes the files much larger
STATIC = 5.0  # grey levels, of the camera-noise filler
CARDS = ((24, 24, 32), (236, 232, 222), (40, 44, 78), (58, 36, 36), (30, 52, 44))
INKS = ((240, 240, 240), (40, 40, 48), (250, 214, 90), (240, 200, 200), (190, 230, 200))  # one per card
LOGOS = 6


def draw_clip(clip: ClipSpec, seed: int) -> np.ndarray:
    """Return the frames of a clip, uint8 [time, height, width, rgb]."""
    rng = np.random.default_rng([seed, 1, clip.number])  # of its own, so that any process may draw any clip
    frames = np.zeros((SECONDS * FPS, SIZE, SIZE, 3), dtype=np.float32)
    for part in sorted((*clip.shots, *clip.fillers), key=lambda part: part.start):
        images = _shot(part, rng) if isinstance(part, Shot) else _filler(part, rng)
        for number, image in enumerate(images, part.start * FPS):
            frames[number] = np.asarray(image)
    return add_noise(frames, NOISE, rng)


def add_noise(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Add grey noise of standard deviation `strength` to frames [..., height, width, rgb]; return uint8."""
    noise = rng.standard_normal(frames.shape[:-1], dtype=np.float32)
    return (frames + strength * noise[..., None] + 0.5).clip(0, 255).astype(np.uint8)


def backdrop(background: str, rng: np.random.Generator) -> Image.Image:
    """Draw a background of the named colour, a little lighter or darker, with a slight gradient in some direction."""
    colour = np.array(COLOURS[background], dtype=np.float32) * rng.uniform(0.92, 1.08)
    direction, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.12)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    shade = 1 + strength * (math.cos(direction) * ramp[None, :] + math.sin(direction) * ramp[:, None])
    return Image.fromarray((shade[..., None] * colour).clip(0, 255).astype(np.uint8))


def paste(image: Image.Image, char: str, x: float, y: float, size: float, angle: float) -> None:
    """Paste an emoji on `image`, centred at (x, y), its longer side `size` pixels, turned by `angle` degrees."""
    picture, scale = _turned(char, angle), size / max(sprite(char).size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    image.paste(picture, (round(x - width / 2), round(y - height / 2)), picture)


@lru_cache(maxsize=1)  # all frames of a shot, unless it spins, have the same angle
def _turned(char: str, angle: float) -> Image.Image:
    """Turn the picture at full size: turning before scaling down keeps the edges clean."""
    return sprite(char).rotate(angle, Image.Resampling.BICUBIC, expand=True)


def _shot(shot: Shot, rng: np.random.Generator) -> Iterator[Image.Image]:
    ground = backdrop(shot.background, rng)
    x, y = 32 + rng.uniform(-3, 3, size=2)
    size, angle, sign = rng.uniform(32, 38), rng.uniform(-8, 8), 1 if rng.random() < 0.5 else -1
    count = shot.seconds * FPS
    for number in range(count):
        done, second = number / (count - 1), number / FPS
        travel = 40 * (done - 0.5)  # pixels from the middle
        poses = {  # x, y, size and angle of the emoji
            "slides left": (32 - travel, y, size, angle),
            "slides right": (32 + travel, y, size, angle),
            "rises": (x, 32 - travel, size, angle),
            "falls": (x, 32 + travel, size, angle),
            "grows": (x, y, 18 + 32 * done, angle),
            "shrinks": (x, y, 50 - 32 * done, angle),
            "spins": (x, y, size, angle + sign * 80 * second),
            "bounces": (x, 32 + sign * 14 * math.cos(math.pi * second), size, angle),
        }
        image = ground.copy()
        paste(image, shot.emoji.char, *poses[shot.motion])
        yield image


def _filler(filler: Filler, rng: np.random.Generator) -> Iterator[Image.Image | np.ndarray]:
    count = filler.seconds * FPS
    if filler.kind == "fade":
        colour, backwards = np.asarray(_empty(rng), dtype=np.float32), rng.random() < 0.5
        for number in range(count):
            light = number / (count - 1)
            yield colour * (light if backwards else 1 - light)
    elif filler.kind == "camera noise":
        grey = np.full((SIZE, SIZE, 3), rng.uniform(30, 110), dtype=np.float32)
        for _ in range(count):
            yield add_noise(grey, STATIC, rng)
    else:
        yield from itertools.repeat(STILLS[filler.kind](rng), count)


def _empty(rng: np.random.Generator) -> Image.Image:
    return backdrop(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], rng)


def _title_card(rng: np.random.Generator) -> Image.Image:
    """Draw two to four lines of "text" in the middle of a plain card."""
    card = int(rng.integers(len(CARDS)))
    image = Image.new("RGB", (SIZE, SIZE), CARDS[card])
    pen = ImageDraw.Draw(image)
    lines = int(rng.integers(2, 5))
    top = 32 - 5 * lines
    for line in range(lines):
        left, right = 32 - int(rng.integers(10, 27)), 32 + int(rng.integers(10, 27))
        while left < right:
            word = min(right, left + int(rng.integers(4, 12)))
            pen.rectangle((left, top + 10 * line + 2, word, top + 10 * line + 6), fill=INKS[card])
            left = word + 3
    return image


def _logo(rng: np.random.Generator) -> Image.Image:
    """Draw one of six logos of an imaginary studio on a plain card."""
    card, colour = int(rng.integers(len(CARDS))), COLOURS[BACKGROUNDS[rng.integers(len(BACKGROUNDS))]]
    image = Image.new("RGB", (SIZE, SIZE), CARDS[card])
    pen = ImageDraw.Draw(image)
    match int(rng.integers(LOGOS)):
        case 0:
            pen.ellipse((16, 16, 48, 48), outline=colour, width=6)
        case 1:
            pen.polygon([(32, 13), (51, 47), (13, 47)], fill=colour)
        case 2:
            pen.polygon([(32, 12), (52, 32), (32, 52), (12, 32)], outline=colour, width=5)
        case 3:
            for left in (14, 28, 42):
                pen.rectangle((left, 60 - left, left + 8, 50), fill=colour)
        case 4:
            pen.ellipse((12, 20, 36, 44), fill=colour)
            pen.ellipse((28, 20, 52, 44), outline=INKS[card], width=3)
        case 5:
            pen.rectangle((27, 12, 37, 52), fill=colour)
            pen.rectangle((12, 27, 52, 37), fill=colour)
    return image


STILLS = {"title card": _title_card, "logo": _logo, "empty background": _empty}  # fillers in which nothing moves
