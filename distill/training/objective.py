"""What is minimised: encode a batch, gather it once over all processes, score it, weigh the losses (TeachCLIP).

`total = w_contrastive L_IN + mean over label sets of (w_coarse L_CgT + w_fine L_FgT)`. Without label sets only the
contrastive term remains, with its weight.
"""

import torch
from torch import Tensor, nn

from distill import comm
from distill.config import Config
from distill.data.loader import Batch
from distill.losses.contrastive import contrastive
from distill.losses.pearson import coarse
from distill.losses.relevance import fine
from distill.model.contract import Interaction, RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures


class ContrastiveConfig(Config):
    """Symmetric InfoNCE on the student's logits (paper: l_IN)."""

    weight: float = 0.2


class CoarseConfig(Config):
    """Pearson distance between softmaxed rows and columns of student's and teacher's logits (paper: l_CgT)."""

    weight: float = 1.0
    temperature: float = 1.0  # divides both sides' logits before the softmax (the authors' beta; the paper's is 1)


class FineConfig(Config):
    """Cross-entropy between the teacher's and the student's frame weights (paper: l_FgT)."""

    weight: float = 2.0
    temperature: float = 1.0  # of the teacher's raw relevance; the paper's is 1


class LossConfig(Config):
    """Weights of the loss; the defaults are TeachCLIP's. Coarse and fine apply to every label set of the recipe."""

    contrastive: ContrastiveConfig = ContrastiveConfig()
    coarse: CoarseConfig = CoarseConfig()
    fine: FineConfig = FineConfig()


class Objective(nn.Module):
    """Named losses of one local batch; every rank returns the same values, those of the global batch."""

    def __init__(self, model: RetrievalModel, interactions: list[Interaction], config: LossConfig, *, bf16: bool):
        super().__init__()
        self.model = model
        self._interactions = tuple(interactions)  # a tuple hides them from the optimizer and the checkpoint
        self._config = config
        self._bf16 = bf16

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.frames is not None, "pixels or stem outputs"
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self._bf16):
            text = self.model.encode_text(batch.ids)
            video = self.model.encode_video(batch.frames, batch.real)
        text, video, labels = gather(text, video, batch.labels)
        logits = self.model.logits(text, video)
        parts = {"contrastive": contrastive(logits)}
        total = self._config.contrastive.weight * parts["contrastive"]
        if labels:
            taught = [
                self._taught(head, rows, logits, video) for head, rows in zip(self._interactions, labels, strict=True)
            ]
            for name, weight in (("coarse", self._config.coarse.weight), ("fine", self._config.fine.weight)):
                if weight:
                    parts[name] = torch.stack([losses[name] for losses in taught]).mean()
                    total = total + weight * parts[name]
        return {"total": total, **parts}

    def _taught(
        self, interaction: Interaction, rows: dict[str, Tensor], logits: Tensor, video: VideoFeatures
    ) -> dict[str, Tensor]:
        losses = {}
        if self._config.coarse.weight:
            with torch.no_grad():
                target = teacher_logits(interaction, rows)
            losses["coarse"] = coarse(logits, target, self._config.coarse.temperature)
        if self._config.fine.weight:
            assert video.relevance is not None, "the recipe refuses a fine loss on a student without frame scores"
            losses["fine"] = fine(video.relevance, rows["relevance"], self._config.fine.temperature)
        return losses


def gather(
    text: TextFeatures, video: VideoFeatures, labels: list[dict[str, Tensor]]
) -> tuple[TextFeatures, VideoFeatures, list[dict[str, Tensor]]]:
    """The global batch from all ranks' shares in one collective, with a true gradient."""
    flat = {f"text.{name}": value for name, value in text.tensors().items()}
    flat |= {f"video.{name}": value for name, value in video.tensors().items()}
    flat |= {f"{number}.{name}": value for number, rows in enumerate(labels) for name, value in rows.items()}
    whole = comm.gather(flat)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): _fp32(value) for name, value in whole.items() if name.startswith(prefix)}

    tables = [part(f"{number}.") for number in range(len(labels))]
    return TextFeatures(**part("text.")), VideoFeatures(**part("video.")), tables


def teacher_logits(interaction: Interaction, rows: dict[str, Tensor]) -> Tensor:
    """The teacher's text x video logits of a batch, rebuilt from stored features by its own scoring head."""
    text = TextFeatures(sentence=rows["sentence"], words=rows.get("words"))
    real = rows["real"].bool() if "real" in rows else None
    return interaction(text, VideoFeatures(vector=rows["vector"], frames=rows.get("frames"), real=real))


def _fp32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
