"""The publication of a sealed folder on the Hugging Face Hub: compared before and after, and never over other content.

A release goes into a repository of models, a frame set, label set or gallery into one of data. What goes there is what
the manifest lists, and the manifest itself, in one commit; of a release that was exported also its ONNX graphs.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import hub
from distill.data.frames import VERSION as FRAMES
from distill.data.labels import READ as LABELS
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.licence import CARD
from distill.manifest import NAME, Kind, Manifest, open_sealed
from distill.onnx.exported import FOLDER, read_export
from distill.records import View, read_json
from distill.release.card import read_metadata
from distill.release.release import load
from distill.retrieval import generation

log = logging.getLogger(__name__)
VERSIONS: dict[str, tuple[int, ...]] = {"frames": (FRAMES,), "labels": LABELS, "gallery": generation.READ}


class _Kind(View):
    kind: Kind


@dataclass(frozen=True)
class Pushed:
    """Where a folder is on the Hub: a page to look at, and the name by which the commands here open it."""

    page: str
    name: str
    files: int  # that were sent; 0: everything was there


def push(folder: Path, to: str, *, direct: bool = False, public: bool = False) -> Pushed:
    """Publish a sealed folder in the repository `to` (OWNER/NAME), by a pull request, or `direct` on its main branch.

    A repository that is not there is made, seen by its owner alone unless it is to be `public`. Raises `ArtefactError`
    for a folder that is not whole and for a repository that holds other files of the same names, `ExpectedError` for
    what the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    manifest = _whole(folder)
    repository = _target(to, manifest.kind)
    if get_token() is None:
        raise ExpectedError(f"hf:{to}: no token to write with; {hub.LOG_IN}")
    api, where = HfApi(), {"repo_id": repository.id, "repo_type": repository.kind}
    names = [*manifest.files, NAME, *_graphs(folder, manifest)]
    try:
        head = _head(api, where, private=not public)
        there = _files(api, where, head)
        left = _new(folder, names, there, f"hf:{to}")
        if not left:
            return Pushed(_page(api, repository), f"hf:{to}@{head}", 0)
        additions = [CommitOperationAdd(name, str(folder / name)) for name in left]
        about = f"Add {manifest.kind} {manifest.id[:12]}"
        made = api.create_commit(
            **where, operations=additions, commit_message=about, create_pr=not direct, parent_commit=head
        )
        _check_arrived(folder, names, _files(api, where, made.oid), f"hf:{to}@{made.oid}")
    except (OSError, ValueError, RuntimeError) as error:  # huggingface_hub's are among them, and those of connections
        raise ExpectedError(f"hf:{to}: not pushed: {hub.reason(error)}") from None
    return Pushed(made.pr_url or made.commit_url, f"hf:{to}@{made.oid}", len(left))


def _whole(folder: Path) -> Manifest:
    """Return the manifest of a folder whose every file was compared with its hash; a release must load, too."""
    kind = read_json(folder / NAME, _Kind, "give a sealed folder of this project").kind
    if kind == "release":
        _check_licence(folder)
        return load(folder).manifest
    return open_sealed(folder, kind, *VERSIONS[kind])


def _graphs(folder: Path, manifest: Manifest) -> list[str]:
    """Return the files of a release's ONNX export, its seal among them; none where there is none."""
    if manifest.kind != "release" or not (folder / FOLDER / NAME).is_file():
        return []
    listed = read_export(folder, manifest.id).files
    return [f"{FOLDER}/{name}" for name in (*read_export(folder, manifest.id, [*listed]).files, NAME)]


def _check_licence(folder: Path) -> None:
    if (folder / CARD).is_file() and "license" not in read_metadata(folder / CARD):
        log.warning(f"{folder / CARD}: states no licence; its last section says what the weights derive from")


def _target(to: str, kind: Kind) -> hub.Repository:
    prefix = "" if kind == "release" else "datasets/"
    found = hub.Repository.named(f"{hub.PREFIX}{to.removeprefix(hub.PREFIX)}")
    if found.revision is not None or found.folder or (found.kind == "model") != (kind == "release"):
        raise ExpectedError(f"{to}: expected a repository to push a {kind} to: {prefix}OWNER/NAME, without a revision")
    return found


def _head(api: Any, where: Mapping[str, Any], *, private: bool) -> str:
    """Return the newest commit of the main branch, of a repository that is made if it is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.repo_info(**where).sha
    except RepositoryNotFoundError:
        api.create_repo(**where, private=private)
        return api.repo_info(**where).sha


def _files(api: Any, where: Mapping[str, Any], revision: str) -> dict[str, Any]:
    """Return what the Hub knows of every file at a revision: its size, and its hash as git or as git-lfs has it."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(**where, revision=revision, recursive=True)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _new(folder: Path, names: list[str], there: Mapping[str, Any], to: str) -> list[str]:
    """Return the files that are not there; `ArtefactError` where another one is in the way."""
    other = [name for name in names if name in there and not _same(folder / name, there[name])]
    if other:
        raise ArtefactError(
            f"{to}: already holds another {first_few(other, 3)}, and nothing is written over it; push to another "
            f"repository, or delete the files there first"
        )
    return [name for name in names if name not in there]


def _check_arrived(folder: Path, names: list[str], there: Mapping[str, Any], where: str) -> None:
    """Compare what the Hub has with the folder: a file may have changed on the way, or be left out by a rule there."""
    bad = [name for name in names if name not in there or not _same(folder / name, there[name])]
    if bad:
        raise ArtefactError(f"{where}: {first_few(bad, 3)} did not arrive as sealed; close it and push again")


def _same(path: Path, entry: Any) -> bool:
    """Return whether a file has the content that the Hub knows by its size and hash."""
    if entry.size != path.stat().st_size:
        return False
    with path.open("rb") as file:
        if entry.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
        blob = hashlib.sha1(b"blob %d\0" % entry.size)  # git's own hash; small files alone have no other
        blob.update(file.read())
    return blob.hexdigest() == entry.blob_id


def _page(api: Any, repository: hub.Repository) -> str:
    return f"{api.endpoint}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.id}"
