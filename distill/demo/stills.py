"""Single pictures with names, for teaching a small CLIP what the emoji look like before it sees any video.

They look like one frame of a shot: the same backgrounds, sizes and noise, and for most the softness and blocks of a
compressed file. All emoji take part, also those that the videos hold out: "unseen" means unseen in videos.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from distill.demo.corpus import BACKGROUNDS, describe
from distill.demo.draw import NOISE, add_noise, backdrop, paste
from distill.demo.emoji import EMOJI

NAME_ONLY = 0.7  # of the captions
COMPRESSED = 0.75  # of the pictures


def render_stills(count: int, seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """`count` pictures (uint8 [64, 64, 3]) and captions; every emoji occurs once before any occurs twice."""
    order = np.array([], dtype=int)
    for number in range(count):
        rng = np.random.default_rng([seed, 2, number])
        place = number % len(EMOJI)
        if place == 0:
            order = rng.permutation(len(EMOJI))
        emoji, background = EMOJI[order[place]], BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        image = backdrop(background, rng)
        size, turned = rng.uniform(18, 50), rng.random() < 0.25  # an eighth of the shots spin, other tilts are slight
        room = max(3.0, (64 - size) / 2)
        x, y = 32 + rng.uniform(-room, room, size=2)
        paste(image, emoji.char, x, y, size, rng.uniform(-180, 180) if turned else rng.uniform(-8, 8))
        picture = add_noise(np.asarray(image, dtype=np.float32), NOISE, rng)
        if rng.random() < COMPRESSED:
            picture = _compressed(picture, int(rng.integers(60, 90)))
        yield picture, emoji.phrase if rng.random() < NAME_ONLY else describe(emoji, None, background)


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    """The picture after JPEG, whose halved colours and blocks resemble H.264's."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))
