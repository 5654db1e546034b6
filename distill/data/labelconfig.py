"""The recipe's section `labels`."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from distill.config import Config
from distill.data.labels import Coarse
from distill.data.labelset import Mismatch


class LabelConfig(Config):
    """A label set; one that was made on other frames of the same videos (another sampler or number) is an error, unless
    its relevance may be interpolated in time."""

    path: str  # folder or URL of a label set
    unlabelled: str | None = None  # the same teacher's label set of `data.unlabelled`
    texts: str | None = None  # and of `data.texts`
    weight: float = Field(default=1.0, gt=0)  # of its losses beside those of the other sets; the weighted mean is taken
    coarse: Coarse = "features"  # tier that the coarse loss reads
    on_mismatch: Mismatch = "error"  # labels of other frames: refuse them, or interpolate in time


# A bare path is a label set of weight 1: `labels: [a, b]` is `labels: [{path: a}, {path: b}]`.
Label = Annotated[LabelConfig, BeforeValidator(lambda given: {"path": given} if isinstance(given, str) else given)]
