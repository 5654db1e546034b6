"""The campaign: draws a video for each seed, and says what it was and what is wrong with what is read of it."""

from collections.abc import Iterable
from pathlib import Path
from random import Random

from distill.log import progress
from videos.drawing import Drawn, draw, write
from videos.oracle import differences


def campaign(folder: Path, seeds: Iterable[int]) -> list[tuple[list[str], list[str]]]:
    """Return for each seed the traits of its video and the findings, in words."""
    told = []
    for seed in progress(list(seeds), "videos"):
        random = Random(seed)
        drawn = draw(random)
        path = write(folder / f"{seed}.{drawn.kind}", drawn)
        told.append((_traits(drawn), [f"seed {seed}, {drawn}: {odd}" for odd in differences(path, drawn, random)]))
        path.unlink()
    return told


def _traits(drawn: Drawn) -> list[str]:
    return [
        f"{drawn.kind} {drawn.codec}",
        "rate constant" if drawn.rate else "rate varying",
        *(["B-frames"] if drawn.b_frames else []),
        *(["begins after its sound"] if drawn.late else []),
        *(["edit list"] if drawn.cut else []),
        *(["turned or mirrored"] if drawn.turn else []),
        *(["pixels not square"] if drawn.aspect != 1 else []),
    ]
