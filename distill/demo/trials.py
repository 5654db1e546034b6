"""The rows of the demo's tables: what is trained, on which labels, and which rows are compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

EPOCHS = "train.epochs="


@dataclass(frozen=True)
class Trial:
    """One row of the demo's table: a recipe of the folder `recipes`, and the changes to it."""

    key: str
    title: str
    recipe: str
    changes: tuple[str, ...] = ()
    taught_by: tuple[str, ...] = ()  # keys of the teachers whose labels it is trained on
    beside: tuple[str, ...] = ()  # what of the clips of split `more` stands beside its pairs: unlabelled, texts
    teaches: bool = False
    of: str = ""  # key of the row whose release takes a second look here; "": this row has a release of its own

    @property
    def folder(self) -> str:
        """The name of its run."""
        return self.of or self.key

    @property
    def epochs(self) -> int:
        """How long it trains; the recipes' own number unless it is changed."""
        changed = [change for change in self.changes if change.startswith(EPOCHS)]
        return int(changed[0].removeprefix(EPOCHS)) if changed else 12


@dataclass(frozen=True)
class Student:
    """A kind of student, and the rows that show what labels add to it."""

    recipe: str
    title: str
    epochs: int  # of a run without labels that costs as much as teacher, labels and a student of 12 epochs together
    alone: tuple[str, ...] = ("labels=[]", "losses.contrastive.weight=1.0")  # as each paper trains

    @property
    def plain(self) -> Trial:
        return Trial(f"{self.recipe}-plain", f"{self.title} without labels", self.recipe, self.alone)

    @property
    def long(self) -> Trial:
        title = f"{self.title} without labels, {self.epochs / 12:g} x steps"
        return Trial(f"{self.recipe}-long", title, self.recipe, (*self.alone, f"{EPOCHS}{self.epochs}"))

    @property
    def published(self) -> Trial:
        title = f"{self.title} with labels, as published"
        return Trial(f"{self.recipe}-published", title, self.recipe, PUBLISHED, ("xclip",))

    @property
    def taught(self) -> Trial:
        return Trial(self.recipe, f"{self.title} with labels", self.recipe, taught_by=("xclip",))

    @property
    def more(self) -> Trial:
        title = f"{self.title} with labels, more videos and captions"
        return Trial(f"{self.recipe}-more", title, self.recipe, taught_by=("xclip",), beside=BOTH)

    def rows(self) -> tuple[Trial, ...]:
        """Return its rows, from no labels to all."""
        return self.plain, self.long, self.published, self.taught, self.more


def looking_again(row: Trial) -> Trial:
    """Return the row of a student's second look."""
    return replace(row, key=f"{row.key}+look", title=f"{row.title}, second look", of=row.key)


PUBLISHED = ("losses.coarse.distance=pearson", "losses.coarse.temperature=1.0", "losses.fine.temperature=1.0")
BOTH = ("unlabelled", "texts")
LOOKING = ("model.second={}",)
TEACHCLIP = Student("teachclip", "TeachCLIP", 36, ("labels=[]",))
EERCF = Student("eercf", "EERCF", 24)
GLSCL = Student("glscl", "GLSCL", 24)
PROMPT_SWITCH = Student("prompt_switch", "Prompt Switch", 15)
STUDENTS = (TEACHCLIP, EERCF, GLSCL, PROMPT_SWITCH)
ONE_STAGE = ("teachclip", "prompt_switch")  # recipes whose students can take a second look

TEACHER = Trial("xclip", "X-CLIP (teacher)", "xclip", teaches=True)
MEAN = Trial("mean", "CLIP4Clip, mean pooling", "clip4clip")
SEQ = Trial("seqtransf", "CLIP4Clip, temporal transformer", "clip4clip", ("model.head=seqTransf",))
TAUGHT, PLAIN = TEACHCLIP.taught, TEACHCLIP.plain
# what each part adds to TeachCLIP, beside `TEACHCLIP.rows()`
COARSE = Trial("teachclip-coarse", "... rankings alone", "teachclip", ("losses.fine.weight=0",), ("xclip",))
FINE = Trial("teachclip-fine", "... relevance of frames alone", "teachclip", ("losses.coarse.weight=0",), ("xclip",))
VIDEOS = Trial("teachclip-videos", "... more videos", "teachclip", taught_by=("xclip",), beside=("unlabelled",))
TEXTS = Trial("teachclip-texts", "... more captions", "teachclip", taught_by=("xclip",), beside=("texts",))
FOR_LOOK = Trial("teachclip-look", "... trained for a second look", "teachclip", LOOKING, ("xclip",))
TWICE = (*LOOKING, f"{EPOCHS}24")
ALL = Trial("teachclip-all", "... all of it, twice the steps", "teachclip", TWICE, ("xclip",), BOTH)
PARTS = (COARSE, FINE, VIDEOS, TEXTS, FOR_LOOK, ALL)

DEMO = (MEAN, PLAIN, TAUGHT, looking_again(TAUGHT), TEACHER)
STUDENT_ROWS = (*(row for student in STUDENTS for row in student.rows()), *PARTS)
LOOKS = tuple(looking_again(row) for row in STUDENT_ROWS if row.recipe in ONE_STAGE)
STUDY = (MEAN, SEQ, *STUDENT_ROWS, *LOOKS, TEACHER)
# teachers that rank no better than the student
TS2NET = Trial("ts2net", "TS2-Net (teacher)", "ts2net", teaches=True)
XPOOL = Trial("xpool", "X-Pool (teacher)", "xpool", teaches=True)
BY_TS2NET = Trial("teachclip-ts2net", "TeachCLIP with TS2-Net's labels", "teachclip", taught_by=("ts2net",))
BY_XPOOL = Trial("teachclip-xpool", "TeachCLIP with X-Pool's labels", "teachclip", taught_by=("xpool",))
BY_TWO = Trial("teachclip-two", "TeachCLIP with X-CLIP's and TS2-Net's", "teachclip", taught_by=("xclip", "ts2net"))
# a student with one vector a video that reads itself by a sentence of its own making; X-Pool's relevance is the same
# expression as the scores that it teaches, so it needs no other temperature
PIG_PLAIN = Trial("pig-plain", "PIG without labels", "pig", ("labels=[]",))
PIG_TAUGHT = Trial("pig", "PIG with labels", "pig", taught_by=("xclip",))
PIG_BY_XPOOL = Trial("pig-xpool", "PIG with X-Pool's labels", "pig", ("losses.fine.temperature=1.0",), ("xpool",))
PIG = (PIG_PLAIN, PIG_TAUGHT, PIG_BY_XPOOL)
ROWS = (*STUDY, BY_TS2NET, BY_XPOOL, BY_TWO, *PIG, TS2NET, XPOOL)

STUDENT_PAIRS = (  # which are compared, by their own vectors or stages
    *((student.taught, student.long) for student in STUDENTS),
    *((student.taught, student.plain) for student in STUDENTS),
    *((student.taught, student.published) for student in STUDENTS),
    *((student.more, student.taught) for student in STUDENTS),
    *((TAUGHT, part) for part in (COARSE, FINE)),
    *((part, TAUGHT) for part in (VIDEOS, TEXTS, FOR_LOOK, ALL)),
)
PAIRS = (  # those, the same by second looks, and others
    *STUDENT_PAIRS,
    *((looking_again(row), looking_again(other)) for row, other in STUDENT_PAIRS if row.recipe in ONE_STAGE),
    *((looking_again(row), row) for row in (PLAIN, TAUGHT, FOR_LOOK, ALL, PROMPT_SWITCH.taught)),
    *((looking_again(row), other.taught) for row in (TAUGHT, FOR_LOOK, ALL) for other in (EERCF, GLSCL)),
    (looking_again(ALL), TEACHER),
    (TAUGHT, TEACHER),
    *((row, PLAIN) for row in (BY_TS2NET, BY_XPOOL, BY_TWO)),
    *((row, PIG_PLAIN) for row in (PIG_TAUGHT, PIG_BY_XPOOL)),
    (PLAIN, SEQ),
    (PLAIN, MEAN),
)


def chosen(rows: Iterable[Trial], keys: Sequence[str]) -> tuple[Trial, ...]:
    """Return the rows of these keys, and those whose releases or labels they need, in the order of `rows`."""
    rows = tuple(rows)
    wanted = {key for row in rows if row.key in keys for key in (row.key, row.of, *row.taught_by)}
    return tuple(row for row in rows if row.key in wanted)
