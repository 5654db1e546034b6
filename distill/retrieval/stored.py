"""Stored columns, mapped into memory and not read; and tokens: those that the second stage of a search needs.

    tokens.safetensors   `vector` and the model's `rerank_fields` of `VideoFeatures`, each [video, ...]

Numbers are float16, masks bool. Half the bytes of float32; a number changes by at most 1 part in 2048, and since such
errors mostly cancel, full scores of EERCF and GLSCL at the papers' sizes change by at most 0.00004, where they spread
over 0.07 (standard deviation). A number that float16 cannot hold (beyond 65,504) is refused.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distill.data.tensorfile import make_header, read_header
from distill.errors import ArtefactError, check_regular
from distill.model.contract import RetrievalModel
from distill.model.features import VideoFeatures
from distill.publishing import publish

FLOAT_BYTES = 4  # of a number in the vectors, float32
AXES = {  # of what may be stored; those of one name are of one size
    "vector": "video dim",
    "frames": "video frame dim",
    "contextual": "video frame dim",
    "patches": "video frame patch dim",
    "concepts": "video concept dim",
    "reading": "video concept frame",
    "relevance": "video frame",
    "real": "video frame",
}
MEND = "restore it, or index again with tools/index.py"


def stored(video: VideoFeatures, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tokens of some videos as they are stored: `vector` and the fields `names`, masks last."""
    features = {"vector": video.vector} | {name: video.tensors()[name] for name in names}
    halves = {name: value if value.dtype == torch.bool else value.half() for name, value in features.items()}
    ordered = sorted(halves.items(), key=lambda item: -item[1].element_size())  # the wider first: all stay aligned
    return {name: value.contiguous().cpu() for name, value in ordered}


def row_bytes(tokens: Mapping[str, Tensor]) -> int:
    """Bytes of one video."""
    return sum(value[0].nbytes for value in tokens.values())


@torch.inference_mode()
def bytes_per_video(model: RetrievalModel, num_frames: int, size: int) -> tuple[int, int]:
    """Return the bytes of a video's vector, and of its tokens (0 in one stage), by encoding a blank one."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    blank = torch.zeros(1, num_frames, 3, size, size, dtype=torch.uint8, device=device)
    video = model.encode_video(blank, torch.ones(1, num_frames, dtype=torch.bool, device=device))
    vector = model.index_vectors(video).shape[1] * FLOAT_BYTES
    model.train(training)
    return vector, row_bytes(stored(video, model.rerank_fields)) if model.rerank_fields else 0


def mapped(path: Path, mend: str = MEND) -> dict[str, Tensor]:
    """The tensors of a safetensors file: the file is mapped to be read alone, and only what is used gets read.

    safetensors itself maps it to be changed in private, for which Linux sets memory aside: a file larger than the
    memory could not be opened.
    """
    check_regular(path)
    try:
        with safe_open(path, "np"):  # which checks that the tensors fill the file
            whole = np.memmap(path, np.uint8, "r")
        header = read_header(lambda begin, size: whole[begin : begin + size].tobytes(), len(whole), path, mend)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            content = torch.from_numpy(whole)
        return {name: content[e.begin : e.end].view(e.dtype).reshape(e.shape) for name, e in header.items()}
    except (SafetensorError, RuntimeError) as error:
        raise damaged(path, f"not whole: {error}", mend) from None


def mapped_whole(path: Path, mend: str, **expected: tuple[int, torch.dtype]) -> dict[str, Tensor]:
    """Return `mapped` tensors that must be these, with so many axes; `mend` ends the error where they are not."""
    found = mapped(path, mend)
    if {name: (value.dim(), value.dtype) for name, value in found.items()} != expected:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
        raise damaged(path, f"holds {shapes}", mend)
    return found


def write_columns(path: Path, columns: Mapping[str, Tensor]) -> None:
    """Publishes tensors as a safetensors file."""
    publish(path, save({name: value.contiguous() for name, value in columns.items()}))


def damaged(path: Path, found: str, mend: str = MEND) -> ArtefactError:
    """Return the error for a file of a gallery that is not as it was written."""
    return ArtefactError(f"{path}: damaged ({found}); {mend}")


def read_rows(columns: Mapping[str, Tensor], rows: slice | Tensor) -> dict[str, Tensor]:
    """Read rows of columns; `index_select` reads no others, and in less time than indexing takes."""
    if isinstance(rows, slice):
        return {name: column[rows] for name, column in columns.items()}
    return {name: column.index_select(0, rows) for name, column in columns.items()}


def joined(tables: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join tables of the same columns, row after row."""
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}


class TokenWriter:
    """Writes the file batch by batch, so that no more than a batch is held."""

    def __init__(self, file: BinaryIO, videos: int):
        self.file, self.videos, self.written = file, videos, 0
        self.places: dict[str, int] = {}  # byte where each tensor begins

    def append(self, tokens: Mapping[str, Tensor]) -> None:
        """The next videos; all batches have the same fields and sizes."""
        if not self.places:
            header, self.places = make_header(tokens, self.videos)
            self.file.write(header)
        for name, value in tokens.items():
            self.file.seek(self.places[name] + self.written * value[0].nbytes)
            self.file.write(value.numpy().tobytes())
        self.written += len(next(iter(tokens.values())))


class Tokens:
    """Stored tokens: indexing with video numbers reads those, as float32 on `device`."""

    def __init__(self, stored: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        self.stored, self.device = stored, device

    @classmethod
    def open(cls, path: Path, device: torch.device | str = "cpu") -> "Tokens":
        """Those of a file, mapped into memory."""
        found = mapped(path)
        sizes: dict[str, int] = {}
        for name, value in found.items():
            axes = AXES.get(name, "").split()
            fits = len(axes) == value.dim() and value.dtype == (torch.bool if name == "real" else torch.float16)
            if not fits or any(sizes.setdefault(*axis) != axis[1] for axis in zip(axes, value.shape, strict=True)):
                raise damaged(path, f"{name!r} is {value.dtype} {list(value.shape)}")
        if "vector" not in found:
            raise damaged(path, "no 'vector'")
        return cls(found, device)

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
        found = read_rows(self.stored, rows if isinstance(rows, slice) else rows.cpu())
        here = {name: value.to(self.device) for name, value in found.items()}
        return VideoFeatures(**{name: v if v.dtype == torch.bool else v.float() for name, v in here.items()})
