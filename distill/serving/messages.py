"""The messages between clients and the server (distill/serving/application.py) as pydantic models."""

from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from distill.retrieval.gallery import Gallery
from distill.retrieval.hits import Hit
from distill.retrieval.where import Where
from distill.serving.limits import MAX_CANDIDATES, MAX_CHARACTERS, MAX_FILE, MAX_FOLDER, MAX_K, MAX_NAME, MAX_QUERIES


def _whole(value: Any) -> Any:
    """Convert 12.0 to 12: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


K = Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(_whole)]
Candidates = Annotated[int, Field(ge=1, le=MAX_CANDIDATES), BeforeValidator(_whole)]
# At least one character that str.isspace denies: \s of JSON schemas knows fewer spaces than Python.
Query = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=r"[^\s\x1c-\x1f\x85]")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Filters(BaseModel):
    """The videos that are meant: those of a folder, and of a length."""

    model_config = ConfigDict(extra="forbid")
    folder: str = Field(
        "", max_length=MAX_FOLDER, description="its path below the video folder; folders below it count"
    )
    min_seconds: Seconds | None = Field(None, description="least length of a file")
    max_seconds: Seconds | None = Field(None, description="greatest length of a file")

    def where(self) -> Where:
        """Return the same for a gallery; `ExpectedError` for lengths that contradict one another."""
        return Where(self.folder, self.min_seconds, self.max_seconds)


class Likeness(Filters):
    """A search by a file that comes with the request, as the request's address says it."""

    k: K = Field(12, description="how many videos")
    spans: bool = Field(False, description="rank the spans of files that were cut one by one")


class Browse(Filters):
    """A page of the list of all videos."""

    k: K = Field(24, description="how many videos")
    after: int = Field(-1, ge=-1, lt=2**53, description="the place where the page before ended")


class Question(Filters):
    """A search: `query`, `queries`, or `like` with a video of the gallery; and how many videos each shall get."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "oneOf": [{"required": ["query"]}, {"required": ["queries"]}, {"required": ["like"]}],
            "not": {"required": ["candidates", "recall"]},
        },
    )
    query: Query = Field("", description="what the video shows, in words")
    queries: list[Query] = Field([], min_length=1, max_length=MAX_QUERIES, description="several, answered in order")
    like: str = Field("", min_length=1, max_length=MAX_NAME, description="the id of a video, to find similar ones")
    k: K = Field(12, description="how many videos")
    candidates: Candidates | None = Field(
        None, description="how many are reranked, by tokens that the gallery holds or by a second look"
    )
    recall: Candidates | None = Field(
        None, description="the former name of candidates", json_schema_extra={"deprecated": True}
    )
    second_look: bool | None = Field(
        None, description="rerank by frames; by default as the server was started, where the gallery allows it"
    )
    spans: bool = Field(False, description="rank the spans of files that were cut one by one, not under their file")

    @model_validator(mode="after")
    def _one_of_each(self) -> "Question":
        if len(self.model_fields_set & {"query", "queries", "like"}) != 1:
            raise ValueError("give either query, queries or like")
        if self.candidates is not None and self.recall is not None:
            raise ValueError("give candidates alone; recall is its former name")
        return self


class Listed(BaseModel):
    """A video of the gallery. Addresses are relative to the page, times in seconds of its file."""

    video: str
    file: str = Field(description="the file's name")
    path: str = Field(description="the file's path below the video folder")
    url: str = Field(description="where to get the file")
    poster: str | None = Field(description="where to get a small picture; null if the gallery keeps none of it")
    duration: float

    @classmethod
    def of(cls, row: int, gallery: Gallery) -> "Listed":
        """Return a row of a gallery as it is sent."""
        about = gallery.about(row)
        name, path = quote(about["id"], safe=""), about["source"]
        poster = f"posters/{name}" if gallery.table.poster(row) else None
        facts = {"video": about["id"], "file": Path(path).name, "path": path, "duration": about["duration"]}
        return cls(**facts, url=f"videos/{name}", poster=poster)


class Listing(BaseModel):
    """A page of the list of videos, in the gallery's order; a file that was cut is listed once."""

    videos: list[Listed]
    total: int = Field(description="how many videos fit the filters")
    after: int | None = Field(description="ask for the next page with this; null on the last one")


class Found(Listed):
    """A video that answers a query."""

    score: float
    seconds: tuple[float, float] = Field(description="the moment with the highest frame weights")
    weighed_by: Literal["query", "video"] = Field(
        description="whether weights and seconds say what answers the query, or what weighs most in the video"
    )
    span: tuple[float, float] | None = Field(description="the segment that was searched; null for the whole file")
    timestamps: list[float] = Field(description="of the frames that the model saw")
    weights: list[float] = Field(description="the weight of each of these frames")
    others: list["Found"] = Field(description="further spans of the same file that match, best first")

    @classmethod
    def of_hit(cls, hit: Hit, gallery: Gallery) -> "Found":
        """Return a hit of a gallery as it is sent."""
        row = gallery.row(hit.video)
        assert row is not None, "a hit is a row of its gallery"
        others = [cls.of_hit(other, gallery) for other in hit.others]
        return cls(**(vars(hit) | vars(Listed.of(row, gallery)) | {"others": others}))


class Answer(BaseModel):
    """The best videos for one query, best first."""

    query: str = Field(description="the words, or the video that others shall be like; empty for a file")
    cut: bool = Field(
        description="whether the model read only the beginning of the query, which is longer than it reads"
    )
    among: int = Field(description="how many videos fit the filters: files, or spans where they are ranked")
    fits: bool | None = Field(None, description="whether anything here fits the query well; null where it is not known")
    hits: list[Found]


class Answers(BaseModel):
    """An answer to every query, in order."""

    results: list[Answer]


class Folder(BaseModel):
    """A folder of videos."""

    path: str = Field(description="below the video folder")
    videos: int = Field(description="files in it or below it")


class About(BaseModel):
    """The gallery's size, examples and limits, which the page shows before the first search."""

    videos: int = Field(description="what is searched: files, and spans of files that were cut")
    files: int
    folders: list[Folder] = Field(description="those with most files, by path")
    examples: list[str]
    weighed_by: Literal["query", "video"] = Field(description="whose weights the hits of a query have")
    second_look: bool = Field(description="whether a search may take a second look")
    no_second_look: str = Field(description="why not; empty if it may")
    max_characters: int = MAX_CHARACTERS
    max_k: int = MAX_K
    max_file: int = Field(MAX_FILE, description="bytes of a file to search by; 0: none can be")


class Health(BaseModel):
    """The state of the server, and how many queries wait."""

    status: str
    waiting: int


class Problem(BaseModel):
    """The reason why a request was refused."""

    error: str


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals with these status codes as OpenAPI describes them."""
    return {code: {"model": Problem, "description": HTTPStatus(code).phrase} for code in codes}
