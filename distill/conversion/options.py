"""The options of a conversion: facts about a checkpoint that its tensors do not show."""

from dataclasses import dataclass, field, fields
from typing import Any

from distill.conversion.names import MODELS
from distill.errors import ExpectedError

KINDS = tuple(MODELS)
WHOLE = tuple(kind for kind in KINDS if kind != "openai")
WORDS, FRAMES = 32, 12  # in the authors' recipes for short videos


def _only(*kinds: str) -> Any:
    return field(default=None, metadata={"kinds": kinds})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings that some kinds take, each named with those kinds; None stands for the kind's default."""

    words: int | None = _only(*WHOLE)  # tokens of a caption
    frames: int | None = _only(*WHOLE)  # of a video
    head: str | None = _only("clip4clip")  # meanP or seqTransf
    token_shift: str | None = _only("ts2net")  # auto, on or off
    noise: str | None = _only("ts2net")  # seeded or zero
    mask: str | None = _only("ts2net")  # tiled or interleaved
    shared: str | None = _only("glscl")  # both, queries, decoder or none
    temperature: float | None = _only("glscl")  # of the softmax over frames
    sampler: str | None = _only("glscl")  # glscl or clip4clip
    clip_frames: int | None = _only("prompt_switch")  # frames whose prompts are aggregated together
    heads: int | None = _only("prompt_switch")  # of the transformer that pools frames
    ema: str | None = _only("prompt_switch")  # on: take the moving average of the weights
    selected: int | None = _only("pig")  # patches that the generator is shown
    quickgelu: bool | None = _only("openai")  # whether the user vouches that the towers use QuickGELU

    def check(self, kind: str) -> None:
        """Raise `ExpectedError` for an option that the kind does not take, or a number out of range."""
        for option in fields(self):
            if getattr(self, option.name) is not None and kind not in option.metadata["kinds"]:
                raise ExpectedError(
                    f"--{option.name.replace('_', '-')} does not go with --kind {kind}, only with "
                    f"{', '.join(option.metadata['kinds'])}; leave it out"
                )
        for name, least in (("words", 3), ("frames", 1), ("clip_frames", 1), ("heads", 1), ("selected", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ExpectedError(f"--{name.replace('_', '-')} {number}: expected at least {least}")
        if self.temperature is not None and not self.temperature > 0:
            raise ExpectedError(f"--temperature {self.temperature:g}: expected a number above 0")
