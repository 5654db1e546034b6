"""The cost of towers beside ViT-B-32: a frame and a query on one core, parameters, and the bytes of a video.

Each architecture takes turns with ViT-B-32, so that two are in memory at once and other load slows both. Times are
those of the processor, in one thread; weights are random, because time does not depend on them. A query has as many
tokens as recipes give it (`data.max_words`): plain transformers compute these, other text towers their whole context.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.bench.rounds import ratio, take_turns
from distill.evaluation.report import aligned
from distill.model.architecture import is_plain
from distill.model.clip import ClipModel
from distill.model.preprocessing import image_size
from distill.model.towers import ClipConfig, Towers, named_architecture, read_architecture
from distill.retrieval.stored import FLOAT_BYTES

REFERENCE = "ViT-B-32"
NAMES = (
    REFERENCE,
    "ViT-B-16",
    "MobileCLIP2-S0",
    "MobileCLIP2-S2",
    "PE-Core-T-16-384",
    "PE-Core-S-16-384",
    "PE-Core-B-16",
    "ViTamin-S",
    "ViT-B-32-SigLIP2-256",
    "EVA02-B-16",
    "convnext_base_w",
)
WORDS = 32  # tokens of a query, as most recipes have it


@dataclass(frozen=True)
class TowerCost:
    """One architecture; milliseconds are medians over rounds, ratios those of a round's two times."""

    name: str
    millions: float  # parameters
    image: int  # pixels of a side
    video_bytes: int  # of one vector
    frame: float  # milliseconds
    query: float
    frame_of_reference: float
    query_of_reference: float
    plain: bool  # two plain transformers, as every student takes


@dataclass(frozen=True)
class TowersReport:
    """All architectures."""

    reference: str
    rows: list[TowerCost]

    def table(self) -> str:
        """As people read it."""
        beside = f"of {self.reference}"
        lines = [["", "M", "image", "bytes/video", "ms a frame", beside, "ms a query", beside, "students"]]
        for row in self.rows:
            times = (f"{row.frame:.0f}", f"{row.frame_of_reference:.2f}")
            times += (f"{row.query:.0f}", f"{row.query_of_reference:.2f}")
            size = (f"{row.millions:.0f}", str(row.image), f"{row.video_bytes:,}")
            lines.append([row.name, *size, *times, "all" if row.plain else "any tower"])
        about = "any tower: clip4clip, teachclip, glscl, xclip and xpool; all: also those that reach into a plain ViT"
        return "\n\n".join([aligned(lines), about])


def measure_towers(names: Sequence[str], rounds: int) -> TowersReport:
    """Time every architecture in turns with the reference; all are checked before the first is built."""
    architectures = {name: _architecture(name) for name in names}
    with _one_thread():
        reference = _Timed(_architecture(REFERENCE))
        rows = [_row(name, found, reference, rounds) for name, found in architectures.items()]
    return TowersReport(REFERENCE, rows)


def _architecture(name: str) -> dict[str, Any]:
    config = ClipConfig(model=name, weights="random")
    return read_architecture(config) if config.folder.is_dir() else named_architecture(name)


def _row(name: str, architecture: dict[str, Any], reference: "_Timed", rounds: int) -> TowerCost:
    tower = _Timed(architecture)
    sides = {"frame": tower.frame, "query": tower.query, "its frame": reference.frame, "its query": reference.query}
    found = take_turns(sides, rounds, name)
    return TowerCost(
        name=name,
        millions=sum(parameter.numel() for parameter in tower.clip.parameters()) / 1e6,
        image=tower.size,
        video_bytes=FLOAT_BYTES * tower.clip.dim,
        frame=1e3 * statistics.median(found["frame"]),
        query=1e3 * statistics.median(found["query"]),
        frame_of_reference=ratio(found["frame"], found["its frame"]),
        query_of_reference=ratio(found["query"], found["its query"]),
        plain=is_plain(architecture),
    )


class _Timed:
    """Towers with random weights, and what they are given."""

    def __init__(self, architecture: dict[str, Any]):
        torch.manual_seed(0)
        self.clip = ClipModel(Towers.from_architecture(architecture)).eval()
        self.size = image_size(self.clip.architecture)
        words = min(WORDS, self.clip.text.context)
        pixels, ids = torch.randn(1, 3, self.size, self.size), torch.randint(1, 1000, (1, words))
        self.frame, self.query = partial(_seconds, self.clip.visual, pixels), partial(_seconds, self.clip.text, ids)


@torch.inference_mode()
def _seconds(tower: Callable[[Tensor], object], given: Tensor) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    tower(given)
    return time.process_time() - began


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
