"""Results of earlier recipes in a demo: a command whose result is there is not run again, so they are refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.config import read_recipe
from distill.data.labels import READ as LABELS_READ
from distill.demo import story
from distill.demo.trials import Trial
from distill.errors import ExpectedError
from distill.manifest import NAME, Kind, read_manifest
from distill.recipe import Recipe
from distill.release.release import READ as RELEASES_READ
from distill.retrieval.generation import READ as GALLERIES_READ
from distill.training.folder import RECIPE, RELEASE

MEND = "delete or move it and all that was made with it, and run again"
MADE: dict[Kind, tuple[int, ...]] = {"labels": LABELS_READ, "gallery": GALLERIES_READ}  # with a release


def check_earlier(
    rows: Sequence[Trial], runs: Path, labels: Path, seed: int, galleries: Mapping[str, Path] | None = None
) -> None:
    """Raise `ExpectedError` if a run there was trained by another recipe than its row has now, or with another release.

    `galleries` are those of some rows, by their keys.
    """
    recipes = story.recipes_of(rows, runs, labels, seed)
    for row in (row for row in rows if not row.of and (runs / row.key / RECIPE).is_file()):
        found = read_recipe(runs / row.key / RECIPE, [], Recipe).model_dump(mode="json")
        if odd := _differing(found, recipes[row.key][row.key]):
            raise ExpectedError(
                f"{runs / row.key}: trained by another recipe than recipes/{row.recipe}.yaml is now ({odd}); {MEND}"
            )
    for teacher in (row for row in rows if row.teaches):
        for split in story.labelled(rows):
            _check_made("labels", story.label_folder(labels, teacher.key, split), runs / teacher.key / RELEASE)
    for key, gallery in (galleries or {}).items():
        _check_made("gallery", gallery, runs / key / RELEASE)


def _check_made(kind: Kind, folder: Path, release: Path) -> None:
    """Refuse what is there already, and was not made with the release that is there."""
    if not (folder / NAME).is_file():
        return
    manifest = read_manifest(folder, kind, *MADE[kind])
    of = manifest.config.get("teacher") if kind == "labels" else manifest.parents.get("release")
    if not (release / NAME).is_file() or read_manifest(release, "release", *RELEASES_READ).id != of:
        raise ExpectedError(f"{folder}: made with another release than {release} is; {MEND}")


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str = "") -> str:
    """Return the first key whose values differ, with both values; nothing if none does."""
    for key in {**wanted, **found}:
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if odd := _differing(old, new, f"{where}{key}."):
                return odd
        elif old != new:
            return f"{where}{key}: {old}, now {new}"
    return ""
