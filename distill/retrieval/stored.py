"""Tokens: the columns that the second stage of a search needs, between a model and a gallery's files.

Numbers are float16, masks bool. Half the bytes of float32; a number changes by at most 1 part in 2048, and since such
errors mostly cancel, full scores of EERCF and GLSCL at the papers' sizes change by at most 0.00004, where they spread
over 0.07 (standard deviation). A number that float16 cannot hold (beyond 65,504) is refused.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from distill.model.contract import RetrievalModel
from distill.model.features import VideoFeatures
from distill.ranking.executor import scales
from distill.retrieval.columns import Columns, row_bytes

FLOAT_BYTES = 4  # of a number in the vectors, float32

with warnings.catch_warnings():  # PyTorch says once in a process that arrays mapped to be read must not be changed
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    torch.from_numpy(np.frombuffer(bytes(1), np.uint8))


def stored(video: VideoFeatures, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tokens of some videos as they are stored: `vector` and the fields `names`, masks last."""
    features = {"vector": video.vector} | {name: video.tensors()[name] for name in names}
    halves = {name: value if value.dtype == torch.bool else value.half() for name, value in features.items()}
    ordered = sorted(halves.items(), key=lambda item: -item[1].element_size())  # the wider first: all stay aligned
    return {name: value.contiguous().cpu() for name, value in ordered}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors on the CPU as the arrays that are written."""
    return {name: value.numpy() for name, value in tensors.items()}


def tensors(columns: Columns) -> dict[str, Tensor]:
    """Return stored arrays as tensors of the same memory, which nothing must change."""
    return {name: torch.from_numpy(value) for name, value in columns.items()}


def beside(vectors: Columns, frames: Columns) -> dict[str, Tensor]:
    """Return stored frames and the vectors beside them as fields that are read where they lie."""
    columns = {"vector": vectors["vectors"], "frames": frames["frames"], "real": frames["real"]}
    columns |= {scales(name): of["scales"] for name, of in (("vector", vectors), ("frames", frames)) if "scales" in of}
    return tensors(columns)


def read_beside(fields: Mapping[str, Tensor], rows: Tensor) -> VideoFeatures:
    """Return some rows of `beside` in float32."""
    found = {name: value.index_select(0, rows) for name, value in fields.items()}  # reads no others

    def floats(name: str) -> Tensor:
        value = found[name].float()
        return value * found[scales(name)].unsqueeze(-1) if scales(name) in found else value

    return VideoFeatures(vector=floats("vector"), frames=floats("frames"), real=found["real"])


@torch.inference_mode()
def bytes_per_video(model: RetrievalModel, num_frames: int, size: int) -> tuple[int, int]:
    """Return the bytes of a video's vector, and of its tokens (0 in one stage), by encoding a blank one."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    blank = torch.zeros(1, num_frames, 3, size, size, dtype=torch.uint8, device=device)
    video = model.encode_video(blank, torch.ones(1, num_frames, dtype=torch.bool, device=device))
    vector = model.index_vectors(video).shape[1] * FLOAT_BYTES
    model.train(training)
    return vector, row_bytes(arrays(stored(video, model.rerank_fields))) if model.rerank_fields else 0


class Tokens:
    """Stored tokens: indexing with video numbers reads those, as float32 on `device`."""

    def __init__(self, stored: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        self.stored, self.device = stored, device

    def tensors(self) -> Mapping[str, Tensor]:
        """By name, as they are stored."""
        return self.stored

    def only(self, fields: tuple[str, ...]) -> "Tokens":
        """The same with no more than `vector` and some fields."""
        return Tokens({name: self.stored[name] for name in ("vector", *fields)}, self.device)

    def scored(self, rows: Tensor, score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Scores of rows, where they are stored: `score` gets the tensors of all rows."""
        return score(self.stored, rows)

    def __getitem__(self, rows: slice | Tensor) -> VideoFeatures:
        if isinstance(rows, slice):
            found = {name: column[rows] for name, column in self.stored.items()}
        else:  # reads no others, and in less time than indexing takes
            found = {name: column.index_select(0, rows.cpu()) for name, column in self.stored.items()}
        here = {name: value.to(self.device) for name, value in found.items()}
        return VideoFeatures(**{name: v if v.dtype == torch.bool else v.float() for name, v in here.items()})
