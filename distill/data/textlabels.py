"""A label set as the labels of captions without videos: the teacher's features of each."""

from collections.abc import Sequence

from torch import Tensor

from distill.data.labels import DUMP, StoredLabels
from distill.data.ondemand import OnDemand
from distill.data.prefetch import ShardSource
from distill.data.texts import Texts
from distill.errors import ArtefactError
from distill.remote import Place


class TextLabels(StoredLabels):
    """A sealed label set of a text file or a frame set, by the numbers of its captions; one of others is refused."""

    def __init__(self, path: str | Place, texts: Texts, *, verify: bool = True):
        super().__init__(path, verify=verify)
        found = self.manifest.parents.get(texts.kind, "nothing")
        if found != texts.id:
            raise ArtefactError(
                f"{self.path}: labels were made from {texts.kind} {found[:12]}, but {texts.path} is {texts.id[:12]}; "
                f"run {DUMP} on it, or point data.texts at what was labelled"
            )
        self._places = texts.places

    def source(self) -> ShardSource:
        """Where the labels of every caption come from."""
        return ShardSource(self.shards, _Keys(self._places), "texts")

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Features of captions by name, as fp32; the first axis is the caption."""
        rows = [self._places[number] for number in numbers]
        return self.rows(rows, "features", "text") if rows else {}


class _Keys(OnDemand[str]):
    """The sample of every caption."""

    def __init__(self, places: Sequence[tuple[str, int]]):
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def _made(self, row: int) -> str:
        return self._places[row][0]
