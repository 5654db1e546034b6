"""The frame sets and label sets that a release names: found by their ids, whatever they are called now."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from distill.data.frames import FrameSet
from distill.data.labels import StoredLabels
from distill.errors import ExpectedError
from distill.release.stated import FramesStated, Stated
from distill.remote import Place
from distill.verification.claims import Claim, compared, unchecked

Found = TypeVar("Found", FrameSet, StoredLabels)


def find_frames(given: Sequence[Place], stated: Mapping[str, FramesStated]) -> tuple[dict[str, FrameSet], list[Claim]]:
    """Return the frame sets by what they are to the release (`train`, `val`, `test`, ...), and claims about their ids.

    Without any that is given, sets are looked for where the recipe had them; there another set is no finding.
    """
    sets = {found.manifest.id: found for found in (FrameSet(place) for place in given)} or _nearby(
        FrameSet, (about.path for about in stated.values())
    )
    roles: dict[str, FrameSet] = {}
    claims = []
    for role, about in stated.items():
        if about.id in sets:
            roles[role] = sets[about.id]
            claims.append(compared(f"frames, {role}: id", about.id, about.id))
        elif about.id is not None:
            why = f"give the frame set ({about.path}) by --frames"
            claims.append(unchecked(f"frames, {role}: id", about.id, why))
    known = {about.id for about in stated.values()}
    left = [found for id, found in sets.items() if id not in known]
    for role, about in stated.items():
        if about.id is None and len(left) == 1:  # of an earlier version, which names its test frames by their path
            roles[role] = left[0]
            claims.append(unchecked(f"frames, {role}: id", about.path, f"not stated; measured on {left[0].path}"))
            return roles, claims
    names = ", ".join(f"{role} {str(about.id)[:12]}" for role, about in stated.items())
    claims += [Claim(f"frames given, {found.path}", names, found.manifest.id, "differs") for found in left if given]
    return roles, claims


def _nearby(kind: type[Found], paths: Iterable[str]) -> dict[str, Found]:
    """Return the sets that lie where the recipe had them, on this machine alone: nobody asked for a network."""
    found = {}
    for path in (Path(path) for path in paths if path):
        try:
            one = kind(path) if path.is_dir() else None
        except (ExpectedError, OSError, ValueError):
            continue
        found |= {} if one is None else {one.manifest.id: one}
    return found


def check_labels(given: Sequence[Place], about: Stated, train: FrameSet | None) -> list[Claim]:
    """Compare the label sets that a release names with those that are given, or lie where the recipe had them."""
    stated = {name: id for name, id in about.parents.items() if name.startswith("labels ")}
    sets = {found.manifest.id: found for found in (StoredLabels(place) for place in given)}
    sets = sets or _nearby(StoredLabels, about.label_paths())
    teachers = {one.labels: one for one in about.teachers}
    claims = []
    for name, expected in stated.items():
        labels, one = sets.get(expected), teachers.get(name)
        if labels is None:
            claims.append(unchecked(f"{name}: id", expected, "give the label set by --labels"))
            continue
        claims.append(compared(f"{name}: id", expected, labels.manifest.id))
        if one is not None:
            teacher, weights = labels.about_teacher(), f"{name}: sha256 of the teacher's weights"
            claims.append(compared(f"{name}: its teacher", one.id, teacher.id))
            claims.append(compared(weights, one.weights_sha256, teacher.weights_sha256))
        if train is not None and not name.endswith((", unlabelled", ", texts")):
            frames = labels.manifest.parents.get("frames")
            claims.append(compared(f"{name}: made from the training frames", train.manifest.id, frames))
    names = ", ".join(f"{name} {id[:12]}" for name, id in stated.items()) or "none"
    left = [found for id, found in sets.items() if given and id not in stated.values()]
    return [*claims, *(Claim(f"labels given, {one.path}", names, one.manifest.id, "differs") for one in left)]
