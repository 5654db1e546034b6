"""The export of a release as ONNX graphs beside its weights: traced, measured, checked and sealed, or not there."""

from pathlib import Path
from typing import Any

from distill.data.bpe import merges_text, stock_merges
from distill.data.frames import FrameSet
from distill.errors import ArtefactError, ExpectedError, check_installed, writing
from distill.evaluation.evaluate import check_captions
from distill.exporting.graphs import OPSET, quantise, sides, write_graph
from distill.exporting.parity import BEST, check, measure
from distill.log import progress
from distill.manifest import Manifest, seal, sealed_file
from distill.model.architecture import TOKENS
from distill.onnx.exported import FOLDER, MERGES, VERSION, Export, Measured, file_of
from distill.publishing import check_writable, published_folder
from distill.records import read_json
from distill.release.release import PROVENANCE, Release, load
from distill.release.stated import Stated
from distill.remote import Place

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(path: Path, frames: Place | None, int8: bool) -> Measured:
    """Write the folder `onnx` of a release, if its graphs pass the gate of `parity` on a frame set.

    `frames`: one with captions; None takes the test set that the release was trained with, or its validation set.
    `int8`: graphs of 8 bits too. Raises `ExpectedError` for graphs that do not pass; then nothing is left.
    """
    for package in NEEDED:
        check_installed(package)
    folder = path / FOLDER
    if folder.exists():
        raise ExpectedError(f"{folder}: is there already; delete it to export again")
    check_writable(path)
    release = load(path)
    if not release.searchable:
        raise ArtefactError(f"{path}: a teacher, which has no vectors to search by; export a student")
    shown = release.accept(FrameSet(frames or _own_frames(path)))
    check_captions(shown)
    if len(shown) <= BEST:
        raise ExpectedError(
            f"{shown.path}: {len(shown)} videos, of which the {BEST} best are compared; name a larger set by --frames"
        )
    release.encode_text(["a dog"])  # a model that was converted without its tokenizer says so
    with published_folder(folder) as part, writing(folder):
        return _fill(part, release, shown, int8)


def _fill(part: Path, release: Release, frames: FrameSet, int8: bool) -> Measured:
    for name, (side, examples) in progress(sides(release).items(), "write graphs", 2):
        write_graph(side, examples, part / file_of(name, int8=False))
        if int8:
            quantise(part / file_of(name, int8=False), part / file_of(name, int8=True))
    measured = measure(release, frames, part, int8)
    check(measured, release.path)
    if TOKENS not in release.config.architecture:
        (part / MERGES).write_text(merges_text(stock_merges()), encoding="utf-8")
    config: dict[str, Any] = Export(opset=OPSET, measured=measured).model_dump(mode="json")
    files = {file.name: sealed_file(file) for file in sorted(part.iterdir())}
    parents = {"release": release.manifest.id, "frames": frames.manifest.id}
    seal(part, Manifest(kind="onnx", version=VERSION, config=config, counts={}, parents=parents, files=files))
    return measured


def _own_frames(path: Path) -> Path:
    """Return the frame set that a release was measured on, if it is where it was."""
    stated = read_json(path / PROVENANCE, Stated, "name a frame set by --frames")
    named = stated.data("test") or stated.data("val")
    if named is None or not Path(named).is_dir():
        said = "names no test set" if named is None else f"was measured on {named}, which is not here"
        raise ExpectedError(f"{path}: {said}; name a frame set with captions by --frames")
    return Path(named)
