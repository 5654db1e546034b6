"""The things that an index keeps of every row: vectors and frames, in which precision, captions, posters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import ArtefactError, ExpectedError
from distill.retrieval import frames, vectors
from distill.retrieval.encoder import Encoder


@dataclass(frozen=True)
class Kept:
    """One of `vectors.KINDS`, one of `frames.KINDS`, and what else there is."""

    vectors: str
    frames: str
    captions: bool
    posters: bool


def kept(
    release: Encoder,
    out: Path,
    before: Mapping[str, Any] | None,
    *,
    vectors_as: str | None,
    frames_as: str | None,
    captions: bool,
    posters: bool,
) -> Kept:
    """Return what is kept of a release's rows in the gallery `out`, which has the config `before` if it is there.

    None asks for what the gallery has. Raises `ArtefactError` where it has something else, `ExpectedError` for frames
    of a model of two stages.
    """
    two_stages = bool(release.model.rerank_fields)
    if two_stages and frames_as is not None:
        raise ExpectedError(
            f"--frames {frames_as}: {release.path} searches in two stages, and its tokens hold the frames; leave "
            "--frames out"
        )
    if before is None:
        stored = frames.NONE if two_stages else frames_as or frames.KINDS[0]
        return Kept(vectors_as or vectors.KINDS[0], stored, captions, posters)
    had_vectors, had_frames = before["vectors"], before.get("stored_frames", frames.NONE)
    if vectors_as not in (None, had_vectors):
        raise ArtefactError(f"{out}: holds {had_vectors} vectors, not {vectors_as}; leave --vectors out, or index anew")
    if frames_as not in (None, had_frames):
        held = "no frames" if had_frames == frames.NONE else f"{had_frames} frames"
        raise ArtefactError(f"{out}: holds {held}, not {frames_as}; leave --frames out, or index anew")
    return Kept(had_vectors, had_frames, captions, posters)
