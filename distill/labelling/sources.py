"""The label sets that a recipe names, opened and checked: every tier and temperature that its losses ask for."""

import logging

from distill import comm
from distill.catalogue import scoring_head
from distill.data.datasets import UnpairedSource
from distill.data.frames import FrameSet
from distill.data.labelconfig import LabelConfig
from distill.data.labels import LabelSoftness, StoredLabels, short_id
from distill.data.labelset import LabelSet
from distill.data.textlabels import TextLabels
from distill.errors import RecipeError
from distill.labelling.softness import is_flat, measured
from distill.training.job import LabelSource
from distill.training.lossconfig import LossConfig, Temperature, Temperatures

log = logging.getLogger(__name__)


def open_source(
    label: LabelConfig, losses: LossConfig, frames: FrameSet, unpaired: UnpairedSource, dim: int
) -> LabelSource:
    """Open a label set with every tier that the losses read, and the same teacher's of what is unpaired; `dim` is the
    size of the student's sentences.

    Raises `ArtefactError` for a set that lacks a tier, `RecipeError` for one that recommends no temperature where
    the losses ask for it, or for sets of several teachers. Warns of labels that are flat.
    """
    coarse = label.coarse if losses.coarse.weight or losses.sentence.weight else None
    label_set = LabelSet(label.path, frames, verify=comm.rank() == 0, coarse=coarse, on_mismatch=label.on_mismatch)
    if coarse:
        label_set.require(coarse, "losses.coarse" if losses.coarse.weight else "losses.sentence")
    if losses.sentence.weight:
        label_set.require_sentences(dim)
    if losses.fine.weight:
        label_set.require("relevance", "losses.fine")
    videos = texts = None
    verify = comm.rank() == 0
    if label.unlabelled is not None and unpaired.videos is not None:
        videos = LabelSet(label.unlabelled, unpaired.videos, verify=verify)
    if label.texts is not None and unpaired.texts is not None:
        texts = TextLabels(label.texts, unpaired.texts, verify=verify)
    for beside in (videos, texts):
        if beside is not None:
            beside.require("features", "losses.coarse")
            _check_teacher(label_set, beside)
    temperatures = _temperatures(label_set, losses)
    return LabelSource(label_set, scoring_head(label_set), label.weight, temperatures, videos, texts)


def _check_teacher(labels: StoredLabels, beside: StoredLabels) -> None:
    """Refuse labels of another teacher: its features say nothing to this one's scoring head."""
    first, other = (stored.config.teacher for stored in (labels, beside))
    if first != other:
        raise RecipeError(
            f"labels: {beside.path} was made by teacher {short_id(other)}, but {labels.path} by {short_id(first)}; "
            f"name label sets of one teacher"
        )


def _temperatures(labels: StoredLabels, losses: LossConfig) -> Temperatures:
    """Return the temperatures that `auto` stands for; warn of labels that are flat at the temperature in use."""
    asked: dict[str, Temperature] = {}
    if losses.fine.weight and not losses.fine.standardise:  # which has a scale of its own
        asked["fine"] = losses.fine.temperature
    if losses.coarse.weight and losses.coarse.distance != "l1":  # which has no softmax
        asked["coarse"] = losses.coarse.temperature
    softness = labels.config.softness
    if softness is None and "auto" in asked.values():
        softness = measured(labels)
        log.info(f"{labels.path}: sealed without temperatures; measured now (new labels have them in their manifest)")
    found = {}
    for kind, given in asked.items():
        used = _recommended(labels, kind, softness) if given == "auto" else given
        if given == "auto":
            found[kind] = used
            log.info(f"{labels.path}: losses.{kind}.temperature: auto is {used:g}")
        if softness is not None and is_flat(getattr(softness, kind), used):
            log.warning(
                f"{labels.path}: {kind} labels are flat at temperature {used:g}, they tell hardly anything apart; "
                f"lower losses.{kind}.temperature, or say auto"
            )
    return Temperatures(**found)


def _recommended(labels: StoredLabels, kind: str, softness: LabelSoftness | None) -> float:
    soft = None if softness is None else getattr(softness, kind)
    if soft is None or soft.recommended is None:
        raise RecipeError(
            f"losses.{kind}.temperature: auto, but {labels.path} recommends none, because its {kind} labels tell too "
            f"little apart at any temperature; write a number, or leave the set out"
        )
    return soft.recommended
