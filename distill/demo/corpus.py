"""The script of the demo corpus: its clips, their captions, and what every second of them shows.

A clip has twelve seconds: one or two shots, in each of which an emoji makes one of eight motions on one of eight
backgrounds, and fillers between them. Clips come in families of four that share an emoji and mostly take the other
emoji of a two-shot clip from the same two, so that a caption's nearest wrong answers differ in one word.

Splits divide combinations: for every emoji the 64 (motion, background) pairs are dealt out to train, val and test, so
no shot of a gallery occurs in training, but all of its words do. A tenth of the emoji occur in `unseen` only. A gallery
keeps a caption only if no other of its clips makes it true; every clip keeps at least one.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.demo.emoji import EMOJI, Emoji
from distill.errors import ExpectedError

SECONDS = 12
COLOURS = {  # RGB
    "red": (200, 62, 58),
    "orange": (228, 140, 52),
    "yellow": (232, 214, 92),
    "green": (84, 160, 76),
    "teal": (48, 158, 156),
    "blue": (66, 104, 196),
    "purple": (136, 82, 172),
    "gray": (142, 142, 142),
}
BACKGROUNDS = tuple(COLOURS)
MOTIONS = {  # singular -> plural
    "slides left": "slide left",
    "slides right": "slide right",
    "rises": "rise",
    "falls": "fall",
    "grows": "grow",
    "shrinks": "shrink",
    "spins": "spin",
    "bounces": "bounce",
}
ACTIONS = list(itertools.product(MOTIONS, BACKGROUNDS))
FILLERS = ("title card", "camera noise", "empty background", "fade", "logo")
SPLITS = {"train": 1.0, "val": 0.4, "test": 1.4, "unseen": 0.2}  # clips, as a share of the training clips
MORE = "more"  # clips like those of training, which may be used without their captions
DEALT = {"train": 38, "val": 7, "test": 19}  # of an emoji's 64 combinations
HELD_OUT = 0.1  # of the emoji
EMOJI_PER_CLIP = 0.25  # emoji for every training clip, while there are as many
STARS = ("hatching chick", "red apple", "fire engine", "octopus")  # in a corpus of any size
FAMILY = 4  # clips
ROUNDS = 200  # of redrawing gallery clips whose captions are all ambiguous


@dataclass(frozen=True)
class Claim:
    """The part of a caption that describes one shot; None is not mentioned."""

    emoji: Emoji
    motion: str | None = None
    background: str | None = None

    def holds(self, shot: "Shot") -> bool:
        """Return whether the shot shows what is claimed."""
        return (
            self.emoji == shot.emoji
            and self.motion in (None, shot.motion)
            and self.background in (None, shot.background)
        )


@dataclass(frozen=True)
class Shot:
    """`seconds` seconds from `start`, in which an emoji moves over a background."""

    emoji: Emoji
    motion: str
    background: str
    start: int
    seconds: int


@dataclass(frozen=True)
class Filler:
    """`seconds` seconds from `start`, which no caption describes."""

    kind: str
    start: int
    seconds: int


@dataclass(frozen=True)
class Sentence:
    """A caption and its claims about shots, in the order of the clip."""

    text: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class ClipSpec:
    """One clip to draw: its number in the corpus, split, shots and fillers, and its captions."""

    number: int
    split: str
    shots: tuple[Shot, ...]
    fillers: tuple[Filler, ...]
    sentences: tuple[Sentence, ...]

    @property
    def video(self) -> str:
        """The id, as MSR-VTT writes it."""
        return f"video{self.number}"

    def makes_true(self, claims: Sequence[Claim]) -> bool:
        """Return whether shots of the clip satisfy the claims, in this order."""
        return any(
            all(claim.holds(shot) for claim, shot in zip(claims, shots, strict=True))
            for shots in itertools.combinations(self.shots, len(claims))
        )

    def relevance(self, sentence: Sentence) -> list[int]:
        """Return 1 for every second that shows a shot which the sentence describes, else 0."""
        seconds = [0] * SECONDS
        for shot in self.shots:
            if any(claim.holds(shot) for claim in sentence.claims):
                seconds[shot.start : shot.start + shot.seconds] = [1] * shot.seconds
        return seconds

    def content(self) -> list[int]:
        """Return the seconds that show a shot."""
        return [second for shot in self.shots for second in range(shot.start, shot.start + shot.seconds)]


def plan(num_clips: int, seed: int, more: int = 0) -> list[ClipSpec]:
    """Return the corpus for `num_clips` training clips: train, val, test, unseen, numbered in this order.

    Behind them stand so many `more` clips, made of what training clips are made of; the others do not depend on them.
    """
    rng = np.random.default_rng([seed, 0])
    held, seen = _actors(num_clips, rng)
    hands = {emoji: _deal(rng) for emoji in seen}  # the combinations of each split
    corpus: list[ClipSpec] = []
    for split, share in SPLITS.items():
        actors = dict.fromkeys(held, ACTIONS) if split == "unseen" else {e: hands[e][split] for e in seen}
        gallery = _Split(split, actors, rng).draw(max(1, round(share * num_clips)))
        corpus += [replace(clip, number=len(corpus) + place) for place, clip in enumerate(gallery)]
    if more:
        drawn = _Split(MORE, {e: hands[e]["train"] for e in seen}, np.random.default_rng([seed, 1])).draw(more)
        corpus += [replace(clip, number=len(corpus) + place) for place, clip in enumerate(drawn)]
    return corpus


def _actors(num_clips: int, rng: np.random.Generator) -> tuple[list[Emoji], list[Emoji]]:
    """Return the emoji of `unseen` and those of the other splits: so few that training has a family of each."""
    stars = [emoji for emoji in EMOJI if emoji.name in STARS]
    extras = [emoji for emoji in EMOJI if emoji.name not in STARS]
    shuffled = [extras[place] for place in rng.permutation(len(extras))]
    count = min(len(shuffled), max(24, round(EMOJI_PER_CLIP * num_clips)))
    num_held = max(6, round(HELD_OUT * count))
    return shuffled[:num_held], [*stars, *shuffled[num_held:count]]


def describe(claim: Claim) -> str:
    """Return "a red apple spins on a green background", or as much of it as is claimed."""
    verb = "" if claim.motion is None else f" {MOTIONS[claim.motion] if claim.emoji.plural else claim.motion}"
    return f"{claim.emoji.phrase}{verb}{'' if claim.background is None else f' on {on(claim.background)}'}"


def on(background: str) -> str:
    """Return "a teal background"."""
    return f"{'an' if background[0] in 'aeiou' else 'a'} {background} background"


def _deal(rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """Return one emoji's (motion, background) pairs by split."""
    shuffled = iter([ACTIONS[place] for place in rng.permutation(len(ACTIONS))])
    return {split: list(itertools.islice(shuffled, count)) for split, count in DEALT.items()}


class _Split:
    """The clips of one split, drawn from the actors and combinations that belong to it."""

    def __init__(self, name: str, actors: dict[Emoji, list[tuple[str, str]]], rng: np.random.Generator):
        self.name, self.actors, self.names, self.rng = name, actors, list(actors), rng

    def draw(self, count: int) -> list[ClipSpec]:
        """Draw `count` clips; those of a gallery lose their ambiguous captions."""
        clips: list[ClipSpec] = []
        leads = itertools.cycle([self.names[place] for place in self.rng.permutation(len(self.names))])
        while len(clips) < count:
            lead = next(leads)
            partners = self._pick(2, but=lead)  # the same two for the whole family: hard wrong answers
            clips += [self._clip(lead, partners) for _ in range(min(FAMILY, count - len(clips)))]
        return clips if self.name in ("train", MORE) else self._unambiguous(clips)

    def _unambiguous(self, clips: list[ClipSpec]) -> list[ClipSpec]:
        """Redraw clips without any unambiguous caption until every clip has one; then drop the ambiguous captions."""
        for _ in range(ROUNDS):
            kept = list(_unambiguous_sentences(clips))
            bare = [place for place, sentences in enumerate(kept) if not sentences]
            if not bare:
                return [replace(clip, sentences=tuple(few)) for clip, few in zip(clips, kept, strict=True)]
            for place in bare:
                lead, *partners = self._pick(3)
                clips[place] = self._clip(lead, partners)
        raise ExpectedError(
            f"{len(clips)} {self.name} clips are more than can be told apart by captions; ask for fewer --clips"
        )

    def _clip(self, lead: Emoji, partners: Sequence[Emoji]) -> ClipSpec:
        rng = self.rng
        if rng.random() < 0.4:
            cast, lengths = [lead], [int(rng.integers(3, 6))]
        else:
            partner = partners[int(rng.integers(len(partners)))] if rng.random() < 0.6 else self._pick(1, but=lead)[0]
            cast = [lead, partner] if rng.random() < 0.5 else [partner, lead]
            lengths = [int(length) for length in rng.integers(3, 5, size=2)]
        gaps = self._gaps(SECONDS - sum(lengths), len(cast))
        shots: list[Shot] = []
        fillers: list[Filler] = []
        now = 0
        for place, gap in enumerate(gaps):
            fillers += self._fill(now, gap)
            now += gap
            if place < len(cast):
                actions = self.actors[cast[place]]
                motion, background = actions[rng.integers(len(actions))]
                shots.append(Shot(cast[place], motion, background, now, lengths[place]))
                now += lengths[place]
        sentences = self._one_shot(*shots) if len(shots) == 1 else self._two_shot(*shots)
        return ClipSpec(0, self.name, tuple(shots), tuple(fillers), sentences)

    def _pick(self, count: int, but: Emoji | None = None) -> list[Emoji]:
        picked = self.rng.choice(len(self.names), size=count + 1, replace=False)
        return [self.names[place] for place in picked if self.names[place] != but][:count]

    def _gaps(self, spare: int, num_shots: int) -> list[int]:
        """Return the filler seconds before, between and after the shots; two shots never touch."""
        gaps = np.bincount(self.rng.integers(num_shots + 1, size=spare), minlength=num_shots + 1)
        if num_shots == 2 and gaps[1] == 0:  # take a second from the longest gap
            donor = int(gaps.argmax())
            gaps[donor] -= 1
            gaps[1] += 1
        return gaps.tolist()

    def _fill(self, start: int, seconds: int) -> list[Filler]:
        """Return fillers of one to three seconds each, neighbours of different kinds."""
        runs: list[Filler] = []
        while seconds:
            run = min(seconds, int(self.rng.integers(1, 4)))
            kinds = [kind for kind in FILLERS if not runs or kind != runs[-1].kind]
            runs.append(Filler(kinds[self.rng.integers(len(kinds))], start, run))
            start, seconds = start + run, seconds - run
        return runs

    def _one_shot(self, shot: Shot) -> tuple[Sentence, ...]:
        """Describe the whole shot in two wordings, and a part of it."""
        whole = _claim(shot)
        turned = f"on {on(shot.background)} {describe(replace(whole, background=None))}"
        return (_sentence(whole), Sentence(turned, (whole,)), _sentence(self._part(shot)))

    def _two_shot(self, first: Shot, second: Shot) -> tuple[Sentence, ...]:
        """Describe the first shot, the second, both in order, and both in another wording."""
        both = (_claim(first), replace(_claim(second), background=None))
        alone = [_claim(shot) if self.rng.random() < 0.6 else self._part(shot) for shot in (first, second)]
        sentences = [_sentence(claim) for claim in alone]
        sentences.append(Sentence(f"{describe(both[0])}, then {describe(both[1])}", both))
        if self.rng.random() < 0.5:
            claims = (Claim(first.emoji), Claim(second.emoji))
            sentences.append(Sentence(f"{first.emoji.phrase} and then {second.emoji.phrase}", claims))
        else:
            claims = (Claim(first.emoji, first.motion), _claim(second))
            sentences.append(Sentence(f"{describe(claims[1])} after {describe(claims[0])}", claims))
        return tuple(sentences)

    def _part(self, shot: Shot) -> Claim:
        """Claim the shot without its motion or without its background."""
        whole = _claim(shot)
        return replace(whole, motion=None) if self.rng.integers(2) == 0 else replace(whole, background=None)


def _claim(shot: Shot) -> Claim:
    return Claim(shot.emoji, shot.motion, shot.background)


def _claims(shot: Shot) -> list[Claim]:
    """Return all claims that hold of a shot."""
    said = itertools.product((None, shot.motion), (None, shot.background))
    return [Claim(shot.emoji, motion, background) for motion, background in said]


def _sentence(claim: Claim) -> Sentence:
    return Sentence(describe(claim), (claim,))


def _unambiguous_sentences(clips: Sequence[ClipSpec]) -> Iterable[list[Sentence]]:
    """Yield for every clip the sentences that no other clip makes true."""
    showing: dict[Claim, list[ClipSpec]] = defaultdict(list)
    for clip in clips:
        for claim in {claim for shot in clip.shots for claim in _claims(shot)}:
            showing[claim].append(clip)
    for clip in clips:
        yield [
            sentence
            for sentence in clip.sentences
            if not any(other is not clip and other.makes_true(sentence.claims) for other in showing[sentence.claims[0]])
        ]
