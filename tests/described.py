"""A register of samples that keeps what the JSON of each says, as Python shows it."""

from types import MappingProxyType

from distill.data.indexes import Description
from distill.data.shards import Shards


class Said(Description):
    """Fills a column with texts of what was read."""

    kinds = MappingProxyType({"said": "B*", "said.sample": "q"})

    def add(self, sample: int, key: str, about: object) -> None:
        self.register.add("said.sample", sample)
        self.register.add_string("said", repr(about))


def said(shards: Shards) -> dict[str, str]:
    """Return what each sample of shards that were opened with `Said` says, by its key."""
    samples, texts = shards.register["said.sample"].tolist(), shards.register.strings("said")
    return {shards.keys[sample]: text for sample, text in zip(samples, texts, strict=True)}
