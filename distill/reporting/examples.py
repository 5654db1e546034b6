"""The examples of a report: queries with the frames of their video and of the one that was ranked first, and frame
weights beside the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from distill.data.frames import FrameSet
from distill.data.videos import PackedVideo
from distill.reporting.charts import weights
from distill.reporting.finished import FinishedRun
from distill.reporting.strips import LONGEST, chosen, strip

WORST = 8  # queries
SHORT = 6  # frames of a strip where two stand side by side


@dataclass(frozen=True)
class Shown:
    """A video as it is shown."""

    id: str
    pictures: list[str]
    score: float | None = None
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Query:
    """A query, its rank (from 1), its rank by another run, its own video, and the one ranked first where it differs."""

    text: str
    rank: int
    rank_there: int | None
    own: Shown
    first: Shown | None


@dataclass(frozen=True)
class Taught:
    """A training pair: the frames, and the weights of student and teachers below them."""

    caption: str
    video: Shown
    picture: Markup


def worst(run: FinishedRun) -> list[int]:
    """Return the queries (text to video) with the highest ranks, one of each video, the worst first."""
    ranks, videos = run.ranks["t2v"], run.ranks["video_of_text"]
    found: dict[int, int] = {}
    for query in ranks.argsort(descending=True, stable=True).tolist():
        if ranks[query] == 0 or len(found) == WORST:
            break
        found.setdefault(int(videos[query]), query)
    return list(found.values())


def queries(run: FinishedRun, test: FrameSet, numbers: Sequence[int], other: FinishedRun | None = None) -> list[Query]:
    """Return queries by number, with the frames of their videos."""
    captions = test.videos.texts
    first, scores, own_scores = (run.answers.get(name) for name in ("first", "first_scores", "own_scores"))
    found = []
    for number in numbers:
        rank, own = int(run.ranks["t2v"][number]), int(run.ranks["video_of_text"][number])
        score = None if own_scores is None else float(own_scores[number])
        wrong = None
        if first is not None and scores is not None and rank and int(first[number, 0]) != own:
            wrong = _shown(test, int(first[number, 0]), SHORT, float(scores[number, 0]), captions=True)
        there = None if other is None else int(other.ranks["t2v"][number]) + 1
        found.append(Query(captions[number], rank + 1, there, _shown(test, own, SHORT, score), wrong))
    return found


def taught(run: FinishedRun, train: FrameSet) -> list[Taught]:
    """Return the training pairs whose frame weights were kept."""
    pairs, student, teacher = (run.answers.get(name) for name in ("taught", "taught_student", "taught_teacher"))
    if pairs is None or student is None or teacher is None:
        return []
    found = []
    for row, (number, caption) in enumerate(pairs.tolist()):
        if not 0 <= number < len(train) or not 0 <= caption < len(train.videos[number].captions):
            return []  # the training frames are others by now
        video = train.videos[number]
        if min(student.shape[1], teacher.shape[2]) < len(video.timestamps):
            return []
        frames = chosen(len(video.timestamps))
        kept = [[float(values[row, frame]) for frame in frames] for values in (student.unsqueeze(0)[0], *teacher)]
        title = "weights of the frames above: " + "; ".join(
            f"{who} {', '.join(f'{100 * value:.0f} %' for value in values)}"
            for who, values in zip(("student", *["teacher"] * len(teacher)), kept, strict=True)
        )
        found.append(Taught(video.captions[caption].text, _shown(train, number, LONGEST), weights(title, kept)))
    return found


def _shown(frames: FrameSet, number: int, most: int, score: float | None = None, captions: bool = False) -> Shown:
    video: PackedVideo = frames.videos[number]
    said = [caption.text for caption in video.captions[:2]] if captions else []
    return Shown(video.id, strip(frames, number, most), score, said)
