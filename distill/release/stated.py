"""The provenance of a release as it is read: typed, whoever wrote it; earlier versions state less."""

from typing import Any

from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt

from distill.records import View

Summary = dict[str, FiniteFloat]  # R@1, R@5, R@10, MdR, MnR


class Metrics(View):
    """Metrics by direction, and with a second look."""

    t2v: Summary = Field(default={})
    v2t: Summary = Field(default={})
    second_look: dict[str, Summary] = Field(default={})


class FramesStated(View):
    """A frame set: its path when it was read, and its id, which earlier versions state for the training set alone."""

    path: str
    id: str | None = None
    licence: str | None = None


class TeacherStated(View):
    """The teacher of a label set."""

    labels: str
    labels_id: str
    id: str
    kind: str
    weights_sha256: str | None
    licence: str | None


class CostStated(View):
    """The cost of the training."""

    steps: NonNegativeInt
    samples: NonNegativeInt
    flops: NonNegativeInt | None
    flops_of: str
    seconds: NonNegativeFloat
    joules: NonNegativeFloat | None


class QueryStated(View):
    """The times of one query, in milliseconds: encoded, and scored in full with all videos of the test."""

    encode_ms: NonNegativeFloat
    score_ms: NonNegativeFloat | None
    videos: NonNegativeInt | None


class HardwareStated(View):
    """The machine of the training."""

    processes: int
    gpu: str | None
    cpu: str
    cores: int | None


class CommitStated(View):
    """The commit of the code."""

    id: str
    changed: bool


class TowersStated(View):
    """The towers that a training began with."""

    model: str
    weights: str
    sha256: str | None
    licence: str | None


class ConvertedStated(View):
    """The checkpoint that a release was converted from."""

    file: str
    sha256: str
    kind: str


class Stated(View):
    """All that a provenance may state."""

    name: str = "a run"
    recipe: dict[str, Any] = Field(default={})
    recipe_sha256: str | None = None
    parents: dict[str, str] = Field(default={})
    frame_sets: dict[str, FramesStated] | None = None
    teachers: list[TeacherStated] = Field(default=[])
    towers: TowersStated | None = None
    captions: dict[str, NonNegativeInt] | None = None
    temperatures: dict[str, dict[str, FiniteFloat]] = Field(default={})
    validation: Metrics = Metrics()
    evaluated_on: str = ""
    test: Metrics = Metrics()
    bytes_per_video: tuple[NonNegativeInt, NonNegativeInt] | None = None  # vector, tokens; None: a teacher, or unknown
    query: QueryStated | None = None
    cost: CostStated | None = None
    seconds: NonNegativeFloat = 0.0
    command: str | None = None
    commit: CommitStated | None = None
    hardware: HardwareStated | None = None
    versions: dict[str, str] = Field(default={})
    converted: ConvertedStated | None = None

    def data(self, key: str) -> str | None:
        """Return a path of the recipe's section `data`."""
        section = self.recipe.get("data")
        found = section.get(key) if isinstance(section, dict) else None
        return found if isinstance(found, str) else None

    def frames(self) -> dict[str, FramesStated]:
        """Return the frame sets by their part in the training."""
        if self.frame_sets is not None:
            return self.frame_sets
        found = {"train": FramesStated(path=self.data("train") or "", id=self.parents.get("frames"))}
        return found | ({"test": FramesStated(path=self.evaluated_on)} if self.evaluated_on else {})

    def label_paths(self) -> list[str]:
        """Return where the label sets were when they were read."""
        sets = self.recipe.get("labels")
        sets = [one for one in sets if isinstance(one, dict)] if isinstance(sets, list) else []
        found = [one.get(key) for one in sets for key in ("path", "unlabelled", "texts")]
        return [path for path in found if isinstance(path, str)]

    @property
    def precision(self) -> str:
        """Return what the towers computed in when metrics were measured."""
        train = self.recipe.get("train")
        return "bf16" if isinstance(train, dict) and train.get("precision") == "bf16" else "fp32"
