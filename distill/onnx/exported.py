"""The folder `onnx` of a release: its graphs, and the seal that says how far they agree with the weights.

    onnx/text.onnx         ids [text, max_words] -> vector [text, dim], and what else of a text a second stage reads
    onnx/video.onnx        frames, real -> vector [video, dim], and what else of a video a second stage or look reads
    onnx/text_int8.onnx    the same with the weights of matrix products in 8 bits
    onnx/video_int8.onnx
    onnx/merges.txt        CLIP's pairs of letters to merge, where the release reads CLIP's tokens
    onnx/manifest.json     the seal: the hash of each file, the id of the release, and the measured parity

The folder has a seal of its own, whose parent is the release: the release keeps its id, and with it its galleries.
"""

from collections.abc import Sequence
from pathlib import Path

from distill.errors import ArtefactError
from distill.manifest import NAME, Manifest, check_files, read_manifest
from distill.records import View

FOLDER, VERSION = "onnx", 1
SIDES = ("text", "video")
MERGES = "merges.txt"
AGAIN = "run `distill export RELEASE --to onnx` again"


def file_of(side: str, int8: bool) -> str:
    """Return the name of a side's graph."""
    return f"{side}{'_int8' if int8 else ''}.onnx"


class Parity(View):
    """How far graphs agree with the weights that they were made of, on the captions and videos of one frame set."""

    score: float  # the largest difference of a score, of any text with any video
    top10: float  # percent of the ten best videos of a text that are the same
    r1: float  # R@1, text to video, in percent
    bytes: int  # of the two graphs
    text_ms: float  # milliseconds of one text, on one thread
    video_ms: float  # milliseconds of one video, on one thread


class Reference(View):
    """The same figures of the weights themselves, by torch."""

    r1: float
    bytes: int
    text_ms: float
    video_ms: float


class Measured(View):
    """The measurements that an export made before it sealed its graphs."""

    frames: str  # name of the frame set
    frames_id: str
    texts: int
    videos: int
    torch: Reference
    float32: Parity
    int8: Parity | None = None


class Export(View):
    """The config of the seal."""

    opset: int
    measured: Measured


def read_export(release: Path, id: str, files: Sequence[str] = ()) -> Manifest:
    """Return the seal of a release's graphs; raise `ArtefactError` unless it is of the release with this id.

    These files must be there, with their hashes.
    """
    folder = release / FOLDER
    manifest = read_manifest(folder, "onnx", VERSION)
    manifest.view(Export, folder)
    found = manifest.parents.get("release", "none")
    if found != id:
        raise ArtefactError(f"{folder}: made of release {found[:12]}, but {release} is {id[:12]}; {AGAIN}")
    missing = [name for name in files if name not in manifest.files]
    if missing:
        raise ArtefactError(f"{folder}: was exported without {missing[0]}; {AGAIN}")
    check_files(folder, manifest, verify=True, but={name for name in manifest.files if name not in files})
    return manifest


def check_export(release: Path, id: str) -> None:
    """Compare what there is of a release's graphs with their seal, as `read_export` does.

    None is missed: the weights do without, and programs that fetch a release often leave its graphs behind.
    """
    folder = release / FOLDER
    if (folder / NAME).is_file():
        listed = read_export(release, id).files
        read_export(release, id, [name for name in listed if (folder / name).is_file()])
