"""The training objective: encode a batch, gather it once over all processes, score it, sum the losses (TeachCLIP).

Where a batch holds videos without captions or captions without videos, the coarse loss compares the ranking of all of
its texts and videos, and every other loss sees the pairs alone.

`total = w_contrastive L_IN + own + weighted mean over label sets of (w_coarse L_CgT + w_fine L_FgT + w_sentence L_S)`.
Without label sets the contrastive term and the model's own losses remain. With `temperature: auto` each label set has
its own.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from distill.data.batch import Batch
from distill.losses import coarse, fine
from distill.losses.contrastive import contrastive
from distill.losses.generation import generation
from distill.model.blocks import recomputed
from distill.model.contract import Interaction, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.training.lossconfig import SOFT, CoarseConfig, FineConfig, LossConfig, Temperature, Temperatures
from distill.training.tables import Tables, gather, of_sides
from distill.training.teachers import Teachers, TeacherScores


def total_loss(
    scores: TrainingScores,
    teachers: Sequence[TeacherScores],
    config: LossConfig,
    *,
    real: Bool[Tensor, "pair frame"] | None = None,
    videos: Int[Tensor, " pair"] | None = None,
) -> dict[str, Tensor]:
    """The named losses of a global batch and their weighted `total`; several teachers' losses are averaged, and so are
    those of several targets of one student.

    `real` leaves padded frames out of the fine loss, `videos` leaves other captions of the same video out of the
    contrastive one.
    """
    contrasts = [weight * contrastive(logits, videos) for weight, logits in scores.contrasts]
    parts = {"contrastive": torch.stack(contrasts).sum(), **scores.own}
    total = config.contrastive.weight * parts["contrastive"] + sum(scores.own.values())
    share = [teacher.weight / sum(teacher.weight for teacher in teachers) for teacher in teachers]
    if teachers and config.coarse.weight:
        parts["coarse"] = _mean([_rankings(scores, teacher, config.coarse) for teacher in teachers], share)
        total = total + config.coarse.weight * parts["coarse"]
    if teachers and config.fine.weight:
        parts["fine"] = _mean([_frames(scores, teacher, config.fine, real) for teacher in teachers], share)
        total = total + config.fine.weight * parts["fine"]
    if teachers and config.sentence.weight:
        parts["sentence"] = _mean([_sentences(scores, teacher) for teacher in teachers], share)
        total = total + config.sentence.weight * parts["sentence"]
    return {"total": total, **parts}


def _rankings(scores: TrainingScores, teacher: TeacherScores, config: CoarseConfig) -> Tensor:
    assert teacher.logits is not None, "teachers score the batch wherever the coarse loss has a weight"
    said, temperature = _softened(teacher.logits, config.temperature, teacher.temperatures)
    taught = [scores.rankings[name] for name in config.targets or scores.rankings]
    return torch.stack([coarse.coarse(logits, said, temperature, config.distance) for logits in taught]).mean()


def _softened(logits: Tensor, given: Temperature, own: Temperatures) -> tuple[Tensor, float]:
    """Return a teacher's logits and the temperature of both sides; with `auto` the former are of the scale at which
    that temperature softens them as its label set recommends."""
    if given != "auto":
        return logits, given
    assert own.coarse is not None, "checked when the label set was opened"
    return logits * (SOFT / own.coarse), SOFT


def _frames(
    scores: TrainingScores, teacher: TeacherScores, config: FineConfig, real: Bool[Tensor, "pair frame"] | None
) -> Tensor:
    assert teacher.relevance is not None, "checked when the label set was opened"
    relevance = fine.standardised(teacher.relevance, real) if config.standardise else teacher.relevance
    taught = [scores.frames[name] for name in config.targets or scores.frames]
    temperature = teacher.temperatures.fine if config.temperature == "auto" else config.temperature
    assert temperature is not None, "checked when the label set was opened"
    options = temperature, real, config.distance, config.reduction
    return torch.stack([fine.fine(student, relevance, *options) for student in taught]).mean()


def _sentences(scores: TrainingScores, teacher: TeacherScores) -> Tensor:
    assert scores.pseudo_query is not None and teacher.sentence is not None, "the recipe has been checked for both"
    return generation(scores.pseudo_query, teacher.sentence)


SIDES = ("text", "video", "pair", "texts", "videos")  # features of the pairs, and of what stands beside them


class Objective(nn.Module):
    """Named losses of one local batch; every rank returns the same values, those of the global batch.

    `heads` are the teachers' scoring heads with the weights of their losses, in the order of the batch's labels;
    `temperatures` are those that `auto` stands for, in the same order.
    """

    def __init__(
        self,
        model: RetrievalModel,
        heads: Sequence[tuple[Interaction, float]],
        config: LossConfig,
        *,
        bf16: bool,
        mask_same_video: bool = False,
        accumulate: int = 1,
        temperatures: Sequence[Temperatures] = (),
    ):
        super().__init__()
        self.model = model
        self._teachers = Teachers(heads, config, temperatures)  # no module: optimizer and checkpoint do not see it
        self._config = config
        self._bf16 = bf16
        self._mask_same_video = mask_same_video
        self._accumulate = accumulate

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        known = gather(self._own(batch))
        text, video = TextFeatures(**known["text"]), VideoFeatures(**known["video"])
        scores = self.model.training_scores(text, video, PairFeatures(**known["pair"]) if "pair" in known else None)
        if batch.unpaired is not None:
            every_text = TextFeatures.cat([text, TextFeatures(**known["texts"])]) if "texts" in known else text
            every_video = VideoFeatures.cat([video, VideoFeatures(**known["videos"])]) if "videos" in known else video
            scores = replace(scores, rankings=self.model.rankings(every_text, every_video))
        return total_loss(
            scores,
            self._teachers.scores(batch, known),
            self._config,
            real=video.real if self.model.mask_padding else None,
            videos=known["batch"]["videos"] if self._mask_same_video else None,
        )

    def _own(self, batch: Batch) -> Tables:
        """Return what all processes need of this one's share: features of every side, labels, numbers of videos."""
        found = of_sides(self._features(batch), SIDES) | self._teachers.shared(batch)
        return found | ({"batch": {"videos": batch.videos}} if self._mask_same_video else {})

    @torch.no_grad()
    def why(self, batch: Batch) -> str | None:
        """Say what in the labels of a batch makes its loss no number, if that is the cause. A collective."""
        if self._config.coarse.distance != "pearson" or not self._config.coarse.weight:
            return None
        for number, teacher in enumerate(self._teachers.scores(batch, gather(self._teachers.shared(batch))), 1):
            assert teacher.logits is not None, "the coarse loss has a weight"
            logits, temperature = _softened(teacher.logits, self._config.coarse.temperature, teacher.temperatures)
            for scores, what in ((logits, "captions, all videos"), (logits.T, "videos, all captions")):
                shares = (scores / temperature).softmax(-1)
                equal = int(((shares - shares.mean(-1, keepdim=True)).norm(dim=-1) == 0).sum())
                if equal:
                    return (
                        f"for {equal} of {len(scores)} {what} of the batch have the same score of teacher "
                        f"{number}, with which nothing correlates: are captions equal, or is the teacher damaged? "
                        f"losses.coarse.distance=kl is defined there too"
                    )
        return None

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        """The features of a batch as `text.sentence`, `video.vector`, `pair.attention`; what stands beside the pairs
        as `texts.sentence`, `videos.vector` and so on."""
        assert batch.frames is not None, "pixels or stem outputs"
        given, more = (batch.ids, batch.frames, batch.real), batch.unpaired
        if more is None:
            beside = tuple(whole[:0] for whole in given)
        else:
            assert more.frames is not None, "pixels or stem outputs"
            beside = (more.ids, more.frames, more.real)
        if self._accumulate == 1:
            return self._encode(*given, *beside)
        return self._encode_in_parts(*given, *beside)

    def _encode(
        self, ids: Tensor, frames: Tensor, real: Tensor, more_ids: Tensor, more_frames: Tensor, more_real: Tensor
    ) -> dict[str, Tensor]:
        """The features of some pairs, and of some texts and videos beside them: the towers see each side once."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._bf16):
            text = self.model.encode_text(_joined(ids, more_ids))
            video = self.model.encode_video(_joined(frames, more_frames), _joined(real, more_real))
            own, rest = slice(0, len(ids)), slice(len(ids), None)
            pair = self.model.encode_pair(ids, text[own], video[own])
        sides = {"text": text[own], "video": video[own], "pair": pair, "texts": text[rest], "videos": video[rest]}
        return {
            f"{side}.{name}": value
            for side, features in sides.items()
            if features is not None and len(features)
            for name, value in features.tensors().items()
        }

    def _encode_in_parts(self, *given: Tensor) -> dict[str, Tensor]:
        """The same features, but only one part's activations are ever there (GradCache, Gao et al. 2021).

        The first forward keeps nothing but features. When the backward of the whole loss comes to a part, it is encoded
        again from the same random state, and the gradient of its features goes on to the weights. It is all one
        backward, so each weight gets one gradient, which is reduced over processes once. Every part draws from where
        the step began, as every process does: models that draw do so alike for all of a batch.
        """
        names: list[str] = []

        def encode(*part: Tensor) -> tuple[Tensor, ...]:
            features = self._encode(*part)
            names[:] = features
            return tuple(features.values())

        random, parts = torch if given[0].device.type == "cpu" else torch.cuda, []
        state = random.get_rng_state()
        for part in zip(*(whole.tensor_split(self._accumulate) for whole in given), strict=True):
            random.set_rng_state(state)
            parts.append(recomputed(encode)(*part))
        return {name: torch.cat(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def _joined(one: Tensor, more: Tensor) -> Tensor:
    return torch.cat([one, more]) if len(more) else one


def _mean(losses: list[Tensor], shares: list[float]) -> Tensor:
    return sum((share * loss for share, loss in zip(shares, losses, strict=True)), torch.zeros_like(losses[0]))
