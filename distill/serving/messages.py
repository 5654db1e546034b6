"""The messages between clients and the server (distill/serving/application.py) as pydantic models."""

from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from distill.retrieval.gallery import Gallery, Hit
from distill.serving.limits import MAX_CANDIDATES, MAX_CHARACTERS, MAX_K, MAX_QUERIES


def _whole(value: Any) -> Any:
    """Convert 12.0 to 12: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


K = Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(_whole)]
Candidates = Annotated[int, Field(ge=1, le=MAX_CANDIDATES), BeforeValidator(_whole)]
# At least one character that str.isspace denies: \s of JSON schemas knows fewer spaces than Python.
Query = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=r"[^\s\x1c-\x1f\x85]")]


class Question(BaseModel):
    """A search: `query` or `queries`, and how many videos each shall get."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "oneOf": [{"required": ["query"]}, {"required": ["queries"]}],
            "not": {"required": ["candidates", "recall"]},
        },
    )
    query: Query = Field("", description="what the video shows, in words")
    queries: list[Query] = Field([], min_length=1, max_length=MAX_QUERIES, description="several, answered in order")
    k: K = Field(12, description="how many videos")
    candidates: Candidates | None = Field(None, description="how many are reranked, if the gallery holds tokens")
    recall: Candidates | None = Field(
        None, description="the former name of candidates", json_schema_extra={"deprecated": True}
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "Question":
        if ("query" in self.model_fields_set) == ("queries" in self.model_fields_set):
            raise ValueError("give either query or queries")
        if self.candidates is not None and self.recall is not None:
            raise ValueError("give candidates alone; recall is its former name")
        return self


class Found(BaseModel):
    """A video that answers a query. Times are in seconds of its file."""

    video: str
    file: str = Field(description="the file's name")
    url: str = Field(description="where to get the file, relative to the page")
    poster: str | None = Field(
        description="where to get a small picture, relative to the page; null if the gallery keeps none"
    )
    score: float
    seconds: tuple[float, float] = Field(description="the moment with the highest frame weights")
    span: tuple[float, float] | None = Field(description="the segment that was searched; null for the whole file")
    duration: float
    timestamps: list[float] = Field(description="of the frames that the model saw")
    weights: list[float] = Field(description="the model's weight of each of these frames")

    @classmethod
    def of(cls, hit: Hit, gallery: Gallery) -> "Found":
        """Return a hit of a gallery as it is sent."""
        name = quote(hit.video, safe="")
        poster = f"posters/{name}" if gallery.table.has_posters else None
        return cls(**vars(hit), file=Path(hit.source).name, url=f"videos/{name}", poster=poster)


class Answer(BaseModel):
    """The best videos for one query, best first."""

    query: str
    cut: bool = Field(
        description="whether the model read only the beginning of the query, which is longer than it reads"
    )
    hits: list[Found]


class Answers(BaseModel):
    """An answer to every query, in order."""

    results: list[Answer]


class About(BaseModel):
    """The gallery's size, examples and limits, which the page shows before the first search."""

    videos: int
    examples: list[str]
    max_characters: int = MAX_CHARACTERS
    max_k: int = MAX_K


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
