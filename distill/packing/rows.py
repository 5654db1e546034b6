"""Caption rows: one caption of an annotation file, in whatever layout it came."""

from typing import NamedTuple

from distill.data.timeline import Span


class CaptionRow(NamedTuple):
    """One caption of an annotation file."""

    where: str  # file and place in it, for errors
    video: str  # id
    text: str
    key: str | None = None  # caption id; None: the video's id and the caption's number within the video
    files: tuple[str, ...] = ()  # possible names of the video, likeliest first, extension optional; (): its id
    span: Span = None
    unusable: str | None = None  # why the video cannot be packed, if that is known already
    source: str | None = None  # who wrote the caption: human, or a model and its revision
    published: bool = False  # whether the span is the data set's own, whose frames are counted
