"""Who labels, by what a command line says: a teacher's release, a model of a library, or vectors from elsewhere."""

from pathlib import Path

import torch

from distill.data.frames import FrameSet
from distill.data.texts import Texts
from distill.data.vectorfiles import VectorFiles
from distill.errors import ExpectedError
from distill.labelling import embedder, zeroshot
from distill.labelling.given import GivenVectors
from distill.labelling.labeller import Labeller
from distill.labelling.teacher import TeacherRelease
from distill.release.release import load


def open_labeller(
    teacher: str | None,
    vectors: Path | None,
    given: FrameSet | Texts,
    device: torch.device,
    memory: float | None = None,
) -> Labeller:
    """Return what labels `given`: the release or model that `teacher` names, or the vectors of a folder.

    `memory` are the gigabytes of the device that a model may take, if not all of it should lie there. Raises
    `ExpectedError` unless there is one of both.
    """
    if (teacher is None) == (vectors is None):
        raise ExpectedError("expected one of a teacher and --vectors; give a release, a model, or a folder of vectors")
    if vectors is not None:
        if memory is not None:
            raise ExpectedError("--memory: vectors are read, no model computes them; leave it out")
        return GivenVectors(VectorFiles(vectors), given)
    assert teacher is not None
    if teacher.startswith(embedder.PREFIX):
        return embedder.open_embedder(teacher.removeprefix(embedder.PREFIX), device, memory)
    if teacher.startswith(zeroshot.PREFIX):
        return zeroshot.ZeroShot(teacher.removeprefix(zeroshot.PREFIX), device, memory)
    if memory is not None:
        raise ExpectedError(f"--memory: {teacher} is a release, which lies on its device as a whole; leave it out")
    return TeacherRelease.of(load(teacher, device))
