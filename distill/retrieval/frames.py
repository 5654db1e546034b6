"""Stored frames: what a student of one stage keeps of a video beside its vector, to say which second answers a query.

    frames.safetensors   frames [row, frame, dim], unit vectors; real [row, frame], False on padding; for int8 scales

They are the frames that `RetrievalModel.relevance` compares with a query, and that a second look compares too. As int8,
whole numbers from -127 to 127 with one float32 scale a frame, 12 frames of 512 numbers take 6,204 bytes; a cosine
changes by at most half a scale times the sum of |query|, which is 0.002 on average. Models of two stages have frames
among their tokens (distill/retrieval/stored.py).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.model.features import VideoFeatures
from distill.model.similarity import unit
from distill.ranking.executor import scales
from distill.retrieval.stored import read_rows

INT8, FLOAT16, NONE = "int8", "float16", "none"
KINDS = (INT8, FLOAT16, NONE)
LEVELS = 127


def encode(frames: Float[Tensor, "row frame dim"], real: Bool[Tensor, "row frame"], kind: str) -> dict[str, Tensor]:
    """Return the columns that store these frames as unit vectors, the wider numbers first."""
    vectors = unit(frames).masked_fill(~real.unsqueeze(-1), 0)
    if kind == FLOAT16:
        return {"frames": vectors.half(), "real": real}
    steps = vectors.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    return {"scales": steps, "frames": (vectors / steps.unsqueeze(-1)).round().to(torch.int8), "real": real}


class Frames:
    """The frames of one segment, mapped into memory."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["real"])

    def beside(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return them and columns of vectors (distill/retrieval/vectors.py) as fields that are read where they lie."""
        named = {"vector": vectors["vectors"], scales("vector"): vectors.get("scales")}
        named |= {"frames": self.columns["frames"], scales("frames"): self.columns.get("scales")}
        return {name: value for name, value in named.items() if value is not None} | {"real": self.columns["real"]}

    def of(self, rows: Tensor, vectors: Float[Tensor, "row dim"]) -> VideoFeatures:
        """Return the features of some rows, whose vectors are given: `vector`, `frames` in float32, and `real`."""
        found = read_rows(self.columns, rows)
        frames = found["frames"].float()
        if "scales" in found:
            frames *= found["scales"].unsqueeze(-1)
        return VideoFeatures(vector=vectors, frames=frames, real=found["real"])
