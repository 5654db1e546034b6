"""The recipe tree: everything one run needs, checked before anything is loaded or launched."""

from typing import ClassVar

from pydantic import Field, model_validator

from distill.catalogue import ModelConfig
from distill.config import Config
from distill.data.dataconfig import DataConfig
from distill.data.labelconfig import Label
from distill.training.job import TrainConfig
from distill.training.lossconfig import CoarseConfig, FineConfig, LossConfig
from distill.training.optim import OptimConfig

LONGEST_NAME = 200  # bytes; file systems take 255, and the folder of a second run has a number behind it


class Recipe(Config):
    """One run: a model (student or teacher), its frames, its labels, its losses, how it is optimised."""

    old_keys: ClassVar[dict[str, str]] = {
        "losses.coarse.places": "losses.coarse.targets",
        "losses.fine.places": "losses.fine.targets",
        "model.recall": "model.index_by",
    }
    name: str  # of the run and of its folder
    out: str = "runs"  # the run goes to OUT/NAME
    seed: int = Field(default=0, ge=0, lt=1 << 63)  # of initial weights, batch order and dropout
    model: ModelConfig
    init: str | None = None  # release from whose weights training starts; null: those of model.clip, the rest fresh
    data: DataConfig
    labels: list[Label] = Field(default=[])  # without any, the contrastive loss and the model's own remain
    losses: LossConfig = LossConfig()
    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _combination(self) -> "Recipe":
        unfit = not self.name.isprintable() or len(self.name.encode()) > LONGEST_NAME
        if not self.name or "/" in self.name or self.name.startswith(".") or unfit:
            raise ValueError(
                f"name: {self.name!r:.60} cannot be a folder name under {self.out}: at most {LONGEST_NAME} bytes, no "
                f"slash, no dot at its start"
            )
        self._check_sizes()
        self._check_targets("coarse", self.losses.coarse, self.model.coarse_targets(), "logits to rank a batch with")
        self._check_unpaired()
        self._check_targets("fine", self.losses.fine, self.model.fine_targets(), "frame scores to teach")
        self._check_sentences()
        return self

    def _check_sizes(self) -> None:
        """Refuse numbers of words or frames that the model, whose weights or wiring have a fixed size, cannot take."""
        fed = {"words": ("max_words", self.data.max_words), "frames": ("num_frames", self.data.num_frames)}
        for name, size in self.model.fixed_sizes().items():
            key, given = fed[name]
            if size != given:
                raise ValueError(
                    f"model.{name}: {size}, but data.{key} is {given}; {self.model.kind} is built for that size, so "
                    f"both must be equal"
                )
        if self.data.num_frames % self.model.frame_step():
            raise ValueError(
                f"data.num_frames: {self.data.num_frames}, but {self.model.kind}, as configured, takes a multiple of "
                f"{self.model.frame_step()} frames"
            )

    def _check_unpaired(self) -> None:
        """Refuse videos and captions that nothing would teach, and labels of such that are not drawn."""
        for key, given in (("unlabelled", self.data.unlabelled), ("texts", self.data.texts)):
            if given is None:
                if any(getattr(label, key) is not None for label in self.labels):
                    raise ValueError(
                        f"labels: {key} names labels, but data.{key} is not set; set it to what they are of"
                    )
                continue
            if not self.labels or not self.losses.coarse.weight:
                raise ValueError(
                    f"data.{key}: only the coarse loss learns from it; name labels and give losses.coarse.weight"
                )
            for label in self.labels:
                if getattr(label, key) is None:
                    raise ValueError(
                        f"labels: {label.path} has no {key}; name this teacher's label set of {given}: "
                        f"{{path: {label.path}, {key}: ...}}"
                    )
                if label.coarse == "topk":
                    raise ValueError(f"labels: {label.path}: coarse: topk knows no data.{key}; use coarse: features")

    def _check_sentences(self) -> None:
        """Refuse to teach by sentences a student that makes no pseudo-query, or from labels that have no sentences."""
        if not self.labels or not self.losses.sentence.weight:
            return
        if not self.model.makes_queries():
            raise ValueError(
                f"losses.sentence: {self.model.kind} makes no pseudo-query that a teacher's sentences could teach; set "
                f"losses.sentence.weight=0"
            )
        for label in self.labels:
            if label.coarse == "topk":
                raise ValueError(
                    f"labels: {label.path}: coarse: topk has no sentences; use coarse: features, or set "
                    f"losses.sentence.weight=0"
                )

    def _check_targets(self, name: str, loss: CoarseConfig | FineConfig, targets: tuple[str, ...], what: str) -> None:
        if not self.labels or not loss.weight:
            return
        if not targets:
            raise ValueError(
                f"losses.{name}: {self.model.kind} has no {what}; set losses.{name}.weight=0, or labels=[]"
            )
        unknown = [target for target in loss.targets if target not in targets]
        if unknown:
            raise ValueError(
                f"losses.{name}.targets: {self.model.kind}, as configured, has no {what} called {unknown[0]!r}; it "
                f"has: {', '.join(targets)}"
            )
