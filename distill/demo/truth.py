"""The graded truth of the demo's galleries: how well every clip fits every caption, from the script of the corpus.

3   the caption is true of the clip
2   it is but for one word (a motion or a background), or but for the order of its two shots
1   the clip shows everything that the caption names
0   it does not
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from distill.data.frames import FrameSet
from distill.demo.corpus import Claim, ClipSpec, Sentence
from distill.demo.emoji import Emoji
from distill.evaluation.graded import DEPTH, ndcg
from distill.evaluation.truth import read_qrels
from distill.reporting.finished import ANSWERS

TRUE, NEARLY, NAMED = 3, 2, 1


def grade(clip: ClipSpec, sentence: Sentence) -> int:
    """Return the grade of a clip for a sentence."""
    claims = sentence.claims
    if clip.makes_true(claims):
        return TRUE
    if any(clip.makes_true(changed) for changed in _nearly(claims)):
        return NEARLY
    shown = [shot.emoji for shot in clip.shots]
    return NAMED if all(claim.emoji in shown for claim in claims) else 0


def judgements(clips: Sequence[ClipSpec], first: int = 0) -> Iterable[str]:
    """Yield the lines of a file of judgements in TREC's format; sentences are numbered from `first`, clip by clip.

    Pairs of grade 0 are left out.
    """
    showing: dict[Emoji, list[ClipSpec]] = defaultdict(list)
    for clip in clips:
        for emoji in dict.fromkeys(shot.emoji for shot in clip.shots):
            showing[emoji].append(clip)
    sentences = (sentence for clip in clips for sentence in clip.sentences)
    for number, sentence in enumerate(sentences, first):
        for other in showing[sentence.claims[0].emoji]:
            if value := grade(other, sentence):
                yield f"{number} 0 {other.video} {value}"


def ndcg_of_runs(runs: Mapping[str, Path], qrels: Path, frames: FrameSet) -> dict[str, float]:
    """Return nDCG@10 (text to video, in percent) of every run by its title, from the answers that its test kept.

    Runs that kept none, as those of earlier versions, are left out.
    """
    if not qrels.is_file():
        return {}
    grades, found = read_qrels(qrels, frames).grades, {}
    for title, folder in runs.items():
        kept = folder / ANSWERS
        if kept.is_file():
            first = load_file(kept)["first"].long()
            places = torch.arange(first.shape[1], 0, -1).double().expand(len(first), -1)
            scores = torch.zeros(grades.shape, dtype=torch.double).scatter(1, first, places)
            found[title] = 100 * float(ndcg(scores, grades, DEPTH).mean())
    return found


def _nearly(claims: Sequence[Claim]) -> Iterable[Sequence[Claim]]:
    """Yield the claims without one of their words, and in the other order."""
    for place, claim in enumerate(claims):
        less = [replace(claim, motion=None)] if claim.motion else []
        less += [replace(claim, background=None)] if claim.background else []
        yield from ([*claims[:place], one, *claims[place + 1 :]] for one in less)
    if len(claims) > 1:
        yield list(reversed(claims))
