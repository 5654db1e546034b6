"""Label sets: what a teacher says of a frame set, written once, read by every student.

Shards have the names and keys of the frame shards they annotate. Per sample:

* `<key>.labels.json`: video id, caption ids with the sha256 of their texts, frame timestamps, frames sha256;
* `<key>.labels.safetensors`, by tier:
  `relevance`  `relevance` [caption, frame], the teacher's raw frame-text score (never softmaxed), fp32; a set of a
               teacher without frame vectors lacks this tier;
  `features`   what rebuilds the text x video matrix of any batch: `sentence` [caption, dim], `words` [caption, word,
               dim], `frames` [frame, dim], `vector` [dim], `real` [frame] (1 where a frame counts), each where the
               teacher has or needs it, in the set's dtype;
  `topk`       `shortlist`, `shortlist_scores`, `shortlist_best`, `shortlist_tail` (distill/labelling/shortlist.py).

The frame axis is the sampler's `num_frames`, padding included, because the published teachers do not mask it. Teachers
see frames in the order of time: so stand `frames` and `real`, while `relevance` has the order in which the frames are
packed. `interaction.safetensors` is the teacher's light scoring head; `manifest.json` says which class it belongs to,
`teacher.json` what else is known of the teacher.
distill/labelling/sealing.py writes them. Version 1 had no recommended temperatures, and relevance in every set.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, with_config
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from distill.cache import Cache
from distill.data.building import Sample
from distill.data.frames import SampledFrames
from distill.data.shards import Shards, open_sealed_shards
from distill.data.tensorfile import Entry, read_header
from distill.data.videos import PackedVideo
from distill.errors import ArtefactError
from distill.manifest import MAKER, NAME, Manifest
from distill.records import STRICT, View, canonical_json, parsed
from distill.remote import Place, locate

VERSION, READ = 2, (1, 2)  # written, and read
DUMP = MAKER["labels"]
INTERACTION, TEACHER = "interaction.safetensors", "teacher.json"
Tier = Literal["relevance", "topk", "features"]
Coarse = Literal["features", "topk"]
Side = Literal["text", "video", "both"]
Storage = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Types that a label set may hold, as safetensors calls them.
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
PER_VIDEO = ("vector", "frames", "real")  # every other stored tensor has one row per caption
# of tier `topk`
LIST, SCORES, BEST, TAIL = SHORTLIST = ("shortlist", "shortlist_scores", "shortlist_best", "shortlist_tail")
AS_THEY_ARE = ("relevance", LIST, BEST, TAIL)  # not stored in the set's dtype
AGAIN = "make the set again"
LABELS = "labels.safetensors"  # the member of a sample that holds the tensors
HEADERS = 1024  # of members, that are kept parsed: those of a few batches


def tier_of(name: str) -> Tier:
    """The tier that a stored tensor belongs to."""
    if name == "relevance":
        return "relevance"
    return "topk" if name in SHORTLIST else "features"


def short_id(teacher: str) -> str:
    """Return a teacher's id as an error shows it: the first digits of a hash, or a name as a whole."""
    return teacher[:12] if re.fullmatch("[0-9a-f]{64}", teacher) else teacher


def text_sha256(text: str) -> str:
    """Return the hash by which a label row knows its caption."""
    return hashlib.sha256(text.encode()).hexdigest()


def label_sample(video: PackedVideo, rows: dict[str, Tensor], storage: Storage) -> Sample:
    """The members of one video's labels; features and shortlist scores are stored as `storage`."""
    about = {
        "video": video.id,
        "captions": [{"id": caption.id, "text_sha256": text_sha256(caption.text)} for caption in video.captions],
        "timestamps": list(video.timestamps),
        "frames_sha256": video.frames_sha256,
    }
    stored = {
        name: (value if name in AS_THEY_ARE else value.to(DTYPES[storage])).contiguous() for name, value in rows.items()
    }
    return {"labels.json": canonical_json(about), LABELS: save(stored)}


class _LabelledCaption(TypedDict):
    id: str
    text_sha256: str


@with_config(STRICT)
class LabelledVideo(TypedDict):
    """A labelled video as JSON: the captions and frames that the teacher saw."""

    video: str  # id
    captions: list[_LabelledCaption]
    timestamps: Annotated[list[float], Field(min_length=1)]  # seconds, of the frames that the teacher saw
    frames_sha256: str


class ScoringHead(TypedDict):
    """A teacher's kind, and the settings of its scoring head."""

    kind: str
    config: dict[str, Any]


class Softness(View):
    """How the temperature of a softmax acts on a set's labels (distill/labelling/softness.py)."""

    recommended: float | None  # temperature at which they are as soft as those of a trained teacher; None: none is
    flat: float  # temperature above which they tell hardly anything apart; 0: they do at none


class TeacherAbout(View):
    """A teacher, beside its scoring head (`teacher.json`, which earlier versions did not write)."""

    id: str
    kind: str  # of the scoring head
    weights_sha256: str | None = None  # of its weights; None: the id says all
    licence: str | None = None  # that it states


class LabelSoftness(View):
    """The softness of both kinds of labels; None where a set has none of that kind."""

    fine: Softness | None = None  # relevance of frames
    coarse: Softness | None = None  # logits of texts and videos


class LabelsConfig(View):
    """The settings of the label job that readers need."""

    teacher: str
    tiers: list[Tier]
    interaction: ScoringHead
    softness: LabelSoftness | None = None  # None: sealed by a version that did not measure it
    sampler: SampledFrames | None = None  # None: the set is of captions without videos


class StoredLabels:
    """A sealed label set by itself: its samples and their tensors, by key."""

    def __init__(
        self,
        path: str | Place,
        *,
        verify: bool = True,
        cache: Cache | None = None,
        unsealed: tuple[Manifest, Shards] | None = None,  # what will be sealed
    ):
        self.path = locate(path)
        self.manifest, self.shards = unsealed or open_sealed_shards(
            self.path, "labels", *READ, verify=verify, cache=cache
        )
        self.config = self.manifest.view(LabelsConfig, self.path)
        self.tiers, self.keys = self.config.tiers, self.shards.keys
        self._headers: dict[str, dict[str, Entry]] = {}

    def require(self, tier: Tier, why: str) -> None:
        """Refuses a set that lacks a tier."""
        if tier not in self.tiers:
            mend = f"rerun {DUMP} with --tiers {' '.join(dict.fromkeys([*self.tiers, tier]))}"
            if tier == "relevance":  # of any teacher that has frame vectors
                mend = f"its teacher gave no vectors of frames: label by one that does, or do without {why}"
            raise ArtefactError(f"{self.path}: holds tiers {', '.join(self.tiers)}, but {why} needs {tier!r}; {mend}")

    def require_sentences(self, dim: int) -> None:
        """Refuses a set whose sentences are not of so many numbers."""
        key = next((key for key in self.keys if "sentence" in self.header(key)), None)
        found = None if key is None else self.header(key)["sentence"].shape[-1]
        if found != dim:
            raise ArtefactError(
                f"{self.path}: its sentences have {found or 'no'} numbers, the student's {dim}, and losses.sentence "
                f"compares them; name labels of a teacher with towers of that size, or set losses.sentence.weight=0"
            )

    def about(self, key: str) -> LabelledVideo:
        """Return what is known of the video of a sample."""
        return parsed(LabelledVideo, self.shards.read(key, "labels.json"), f"{self.path}: sample {key}", AGAIN)

    def tensor(self, key: str, name: str, row: int | None = None) -> Tensor:
        """A stored tensor, or one row of it, read without the rest of the file."""
        header = self.header(key)
        if name not in header:
            raise ArtefactError(f"{self.path}: sample {key} has no {name!r}; {AGAIN}")
        dtype, shape, begin, end = header[name]
        if row is not None:
            if not shape or not row < shape[0]:
                raise ArtefactError(f"{self.path}: {name!r} of sample {key} has no row {row}; {AGAIN}")
            size = (end - begin) // shape[0]
            shape, begin, end = shape[1:], begin + row * size, begin + (row + 1) * size
        offset, _ = self.shards.place(key, LABELS)
        data = bytearray(self.shards.read_at(key, offset + begin, end - begin))
        return torch.frombuffer(data, dtype=STORED[dtype]).reshape(shape)

    def rows(self, places: Sequence[tuple[str, int]], tier: Tier, side: Side = "both") -> dict[str, Tensor]:
        """One tier of (key, caption row) pairs by name, real numbers as fp32; the first axis is the pair.

        `side` leaves out what belongs to the video, or to the caption.
        """
        found, left_out = {}, {"both": None, "text": True, "video": False}[side]
        for name in self.header(places[0][0]):
            if tier_of(name) == tier and (name in PER_VIDEO) != left_out:
                rows = [(key, self.tensor(key, name, None if name in PER_VIDEO else row)) for key, row in places]
                stacked = self.stacked(name, rows)
                found[name] = stacked.float() if stacked.is_floating_point() else stacked
        return found

    def stacked(self, name: str, rows: Sequence[tuple[str, Tensor]]) -> Tensor:
        """The rows of samples (by key) as one tensor; they must be of one shape."""
        odd = [(key, row) for key, row in rows if row.shape != rows[0][1].shape or row.dtype != rows[0][1].dtype]
        if odd:
            key, row = odd[0]
            raise ArtefactError(
                f"{self.path}: {name!r} of sample {key} is {row.dtype} {list(row.shape)}, that of {rows[0][0]} "
                f"{rows[0][1].dtype} {list(rows[0][1].shape)}; make the set again"
            )
        return torch.stack([row for _, row in rows])

    def about_teacher(self) -> TeacherAbout:
        """Return what the set says of its teacher: a set of an earlier version its id and kind alone."""
        file = self.manifest.files.get(TEACHER)
        if file is None:
            return TeacherAbout(id=self.config.teacher, kind=self.config.interaction["kind"])
        found = parsed(TeacherAbout, self.shards.file(TEACHER, file), self.path / TEACHER, AGAIN)
        if found.id != self.config.teacher:
            raise ArtefactError(f"{self.path / TEACHER}: about {short_id(found.id)}, not the set's teacher; {AGAIN}")
        return found

    def interaction_weights(self) -> dict[str, Tensor]:
        """State of the teacher's scoring head."""
        if INTERACTION not in self.manifest.files:
            raise ArtefactError(f"{self.path / NAME}: lists no {INTERACTION}; make the set again")
        try:
            return load(self.shards.file(INTERACTION, self.manifest.files[INTERACTION]))
        except SafetensorError as error:
            raise ArtefactError(f"{self.path / INTERACTION}: not safetensors ({error}); make the set again") from None

    def header(self, key: str) -> dict[str, Entry]:
        """Return where the tensors of a sample stand, from the safetensors header of its member."""
        if key not in self._headers:
            offset, size = self.shards.place(key, LABELS)
            where = f"{self.path}: labels of sample {key}"
            header = read_header(
                lambda begin, length: self.shards.read_at(key, offset + begin, length), size, where, AGAIN
            )
            odd = [f"{name!r} is {entry.dtype}" for name, entry in header.items() if entry.dtype not in STORED]
            if odd:
                raise ArtefactError(f"{where}: damaged ({odd[0]}); {AGAIN}")
            if len(self._headers) >= HEADERS:
                del self._headers[next(iter(self._headers))]
            self._headers[key] = header
        return self._headers[key]


def rebuilt_logits(rows: dict[str, Tensor], columns: Int[Tensor, " video"]) -> Float[Tensor, "text video"]:
    """Logits of some stored rows; `columns` are the numbers of the videos, by which shortlists name them."""
    videos, order = rows[LIST].sort(dim=1)
    wanted = columns.expand(len(videos), -1).contiguous()
    place = torch.searchsorted(videos, wanted).clamp(max=videos.shape[1] - 1)
    listed = rows[SCORES].gather(1, order.gather(1, place))
    return rows[BEST].unsqueeze(1) + torch.where(videos.gather(1, place) == wanted, listed, rows[TAIL].unsqueeze(1))
