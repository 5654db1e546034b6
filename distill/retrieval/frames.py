"""Stored frames: what a student of one stage keeps of a video beside its vector, to say which second answers a query.

    frames.safetensors   frames [row, frame, dim], unit vectors; real [row, frame], False on padding; for int8 scales

They are the frames that `RetrievalModel.relevance` compares with a query, and that a second look compares too. As int8,
whole numbers from -127 to 127 with one float32 scale a frame, 12 frames of 512 numbers take 6,204 bytes; a cosine
changes by at most half a scale times the sum of |query|, which is 0.002 on average. Models of two stages have frames
among their tokens (distill/retrieval/stored.py).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32, Int64

from distill.retrieval.columns import read_rows

INT8, FLOAT16, NONE = "int8", "float16", "none"
KINDS = (INT8, FLOAT16, NONE)
LEVELS = 127


def encode(
    frames: Float32[np.ndarray, "row frame dim"], real: Bool[np.ndarray, "row frame"], kind: str
) -> dict[str, np.ndarray]:
    """Return the columns that store these frames, which are unit vectors, the wider numbers first."""
    vectors = np.where(real[:, :, None], frames, np.float32(0))
    if kind == FLOAT16:
        return {"frames": vectors.astype(np.float16), "real": real}
    steps = np.maximum(np.abs(vectors).max(-1), np.finfo(np.float32).tiny) / np.float32(LEVELS)
    return {"scales": steps, "frames": np.round(vectors / steps[:, :, None]).astype(np.int8), "real": real}


class Frames:
    """The frames of one segment, mapped into memory."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["real"])

    def of(
        self, rows: Int64[np.ndarray, " row"]
    ) -> tuple[Float32[np.ndarray, "row frame dim"], Bool[np.ndarray, "row frame"]]:
        """Return the frames of some rows in float32, and which of them are real."""
        found = read_rows(self.columns, rows)
        frames = found["frames"].astype(np.float32)
        if "scales" in found:
            frames *= found["scales"][:, :, None]
        return frames, found["real"]
