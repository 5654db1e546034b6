"""The job of a training: how it runs, its teachers' labels, its model, and everything that this is trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from distill.config import Config
from distill.data.dataconfig import DataConfig
from distill.data.datasets import UnpairedSource
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.textlabels import TextLabels
from distill.data.tokens import TextTokenizer
from distill.model.contract import Interaction, RetrievalModel
from distill.training.lossconfig import LossConfig, Temperatures
from distill.training.optim import OptimConfig
from distill.training.trackers import Name


class TrainConfig(Config):
    """How long, how precisely and how safely to train."""

    epochs: int = Field(ge=1, le=1_000_000)  # passes over all captions
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: the towers run under autocast; weights and losses stay fp32
    zero: Literal[0, 1, 2, 3] = 0  # DeepSpeed ZeRO stage
    accumulate: int = Field(default=1, ge=1)  # micro-batches a step: less memory, the same loss, one more forward
    activation_checkpointing: bool = False  # blocks keep only their inputs: less memory, same bits, one more forward
    compile: bool = False  # torch.compile of the blocks; not with ZeRO 3
    stem_cache_gb: float = Field(
        default=0.0, ge=0
    )  # memory for the frozen vision layers' outputs; 0 computes them every time
    validate_every: int = Field(default=1, ge=1)  # epochs between validations; the last epoch's end always has one
    checkpoint_every: int = Field(default=0, ge=0)  # steps between checkpoints, besides the one at each epoch's end
    checkpoint_minutes: float = Field(default=15.0, ge=0)  # and minutes between them; 0: only as above
    timeout_minutes: float = Field(default=30.0, gt=0)  # how long a process waits for one that does not answer
    log_every: int = Field(default=20, ge=1)  # steps between console lines
    track: list[Name] = Field(default=[])  # programs that show metrics, beside metrics.jsonl: tensorboard, trackio

    @model_validator(mode="after")
    def _compiles(self) -> "TrainConfig":
        if self.compile and self.zero == 3:
            raise ValueError(
                "compile: true, but zero: 3 takes a block's parameters apart between its calls, and what is compiled "
                "would find them empty; use zero: 2, or compile: false"
            )
        return self


@dataclass(frozen=True)
class LabelSource:
    """One teacher of a training run, without its towers: its label set and the head that scores a batch with it."""

    labels: LabelSet
    head: Interaction
    weight: float  # of its losses beside those of the other sources
    temperatures: Temperatures  # that `auto` stands for
    unlabelled: LabelSet | None = None  # its features of the videos without captions
    texts: TextLabels | None = None  # and of the captions without videos


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and everything it is trained on."""

    folder: Path
    seed: int
    model: RetrievalModel
    tokenizer: TextTokenizer
    train: FrameSet
    val: FrameSet
    sources: list[LabelSource]
    unpaired: UnpairedSource
    data: DataConfig
    losses: LossConfig
    optim: OptimConfig
    config: TrainConfig
    began_with: str | None = None  # id of the release whose weights `model` has

    @property
    def bf16(self) -> bool:
        return self.config.precision == "bf16"
