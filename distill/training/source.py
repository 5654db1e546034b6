"""A label set as training uses it: its rows, the head that turns them into the teacher's scores, and its weight."""

from dataclasses import dataclass

from distill import catalogue
from distill.data.labelset import LabelSet
from distill.model.contract import Interaction


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """One teacher of a training run, without its towers."""

    labels: LabelSet
    head: Interaction
    weight: float = 1.0  # of its losses beside those of the other sources


def label_source(labels: LabelSet, weight: float = 1.0) -> LabelSource:
    """Build the scoring head of the teacher that wrote a label set, from the weights that the set holds."""
    weights = labels.interaction_weights()
    head = catalogue.build_interaction(**labels.interaction, weights=weights, where=str(labels.path))
    return LabelSource(labels=labels, head=head, weight=weight)
