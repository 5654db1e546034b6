"""The features that a table stores, as a model reads them: tokens of a second stage, and frames beside vectors."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from distill.model.features import VideoFeatures
from distill.retrieval.columns import Columns
from distill.retrieval.segment import Segment
from distill.retrieval.stored import Tokens, beside, read_beside, tensors
from distill.retrieval.table import Table

SEEN = ("frames", "real")  # the fields, beside `vector`, that say which frames of a video answer a text


class TableTokens:
    """Stored tokens of all segments: indexing with row numbers reads those, as float32 on the model's device."""

    def __init__(self, table: Table, fields: tuple[str, ...], device: torch.device | str = "cpu"):
        self.table, self.fields, self.device = table, fields, device

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the first segment, as they are stored."""
        return self._of(self.table.parts[0]).tensors()

    def scored(self, rows: Int64[Tensor, " row"], score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Scores of rows, where they are stored: `score` gets the tensors of a segment, and its own row numbers."""
        return _gathered(self.table, rows, lambda part, own: self._of(part).scored(own, score))

    def __getitem__(self, rows: Int64[Tensor, " row"]) -> VideoFeatures:
        return _features(self.table, rows, lambda part, own: self._of(part)[own])

    def _of(self, part: Segment) -> Tokens:
        assert part.tokens is not None, "a gallery that reranks has tokens"
        return Tokens(tensors(part.tokens), self.device).only(self.fields)


class TableFrames:
    """Stored frames of all segments: indexing with row numbers reads those, as float32 on the model's device."""

    def __init__(self, table: Table, device: torch.device | str = "cpu"):
        self.table, self.device = table, device

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the first segment, as they are stored."""
        return tensors(_frames(self.table.parts[0]))

    def scored(self, rows: Int64[Tensor, " row"], score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Scores of rows, where they are stored: `score` gets the tensors of a segment, and its own row numbers."""
        return _gathered(self.table, rows, lambda part, own: score(_beside(part), own))

    def __getitem__(self, rows: Int64[Tensor, " row"]) -> VideoFeatures:
        return _features(self.table, rows, lambda part, own: read_beside(_beside(part), own)).to(self.device)


def table_frames(table: Table, device: torch.device | str = "cpu") -> TableFrames | TableTokens | None:
    """`vector`, `frames` and `real` of all rows; None where no frames are stored."""
    if not table.has_frames:
        return None
    return TableTokens(table, SEEN, device) if table.config.tokens else TableFrames(table, device)


def _beside(part: Segment) -> dict[str, Tensor]:
    return beside(part.vectors.columns, _frames(part))


def _frames(part: Segment) -> Columns:
    assert part.frames is not None, "a gallery that stores frames has them in every segment"
    return part.frames.columns


def _features(
    table: Table, rows: Int64[Tensor, " row"], read: Callable[[Segment, Tensor], VideoFeatures]
) -> VideoFeatures:
    found, places = _divided(table, rows, read)
    return found[0] if len(found) == 1 else VideoFeatures.cat(found)[places.argsort()]


def _gathered(table: Table, rows: Int64[Tensor, " row"], read: Callable[[Segment, Tensor], Tensor]) -> Tensor:
    found, places = _divided(table, rows, read)
    return found[0] if len(found) == 1 else torch.cat(found)[places.argsort()]


def _divided(table: Table, rows: Int64[Tensor, " row"], read: Callable) -> tuple[list, Int64[Tensor, " row"]]:
    """Return what `read` makes of each segment's own rows, and where these stand among all."""
    parts = [(read(part, torch.from_numpy(own)), at) for part, own, at in table.divided(rows.numpy())]
    return [found for found, _ in parts], torch.cat([torch.from_numpy(at) for _, at in parts])
