"""Sealed folders of the Hub, fetched whole to this machine: what is mapped or built here needs a folder.

They go into the cache of huggingface_hub, where its own tools find them, and from which they open without a network.
Only what the manifest lists is fetched, once its size is compared; each file but the card is compared with its hash.
"""

import os
from pathlib import Path, PurePosixPath

from distill import hub
from distill.errors import ArtefactError, ExpectedError
from distill.licence import CARD
from distill.log import progress
from distill.manifest import NAME, Kind, SealedFile, file_sha256, read_manifest
from distill.remote import Place, RemotePath, locate

LARGEST = 1 << 27  # bytes of a manifest, which lists a million files in less, or of a card


def local_folder(place: str | Place, kind: Kind, *versions: int) -> Path:
    """Return where a sealed folder is on this machine: itself, or the copy of one of the Hub, `hf:OWNER/NAME@REVISION`.

    Raises `ExpectedError` for one that the Hub does not give, `ArtefactError` for one that comes damaged.
    """
    place = locate(place)
    if isinstance(place, Path):
        return place
    if place.local is not None:
        return place.local
    if not place.url.startswith(hub.URL):
        raise ExpectedError(f"{place}: a {kind} is opened from a folder or the Hub (hf:OWNER/NAME); copy it here first")
    return _fetched(place, kind, versions)


def _fetched(place: RemotePath, kind: Kind, versions: tuple[int, ...]) -> Path:
    repository = hub.Repository.named(place.url)
    manifest, commit = _come(place, repository, repository.revision, NAME, None)
    folder = manifest.parent
    files = read_manifest(folder, kind, *versions).files
    for name in progress(files, f"fetch {place}", len(files)):
        _come(place, repository, commit, name, None if name == CARD else files[name])  # cards are edited on the Hub
    return folder


def _come(
    place: RemotePath, repository: hub.Repository, revision: str | None, name: str, expected: SealedFile | None
) -> tuple[Path, str]:
    """Return where a file is after it was fetched and compared, and the commit that it is of.

    One that the cache holds is not asked for again; whoever opens the folder compares it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    whole = {"repo_id": repository.id, "repo_type": repository.kind, "filename": repository.path(name)}

    def come() -> tuple[Path, str]:
        try:
            known = hf_hub_download(**whole, revision=revision, dry_run=True)
        except RemoteEntryNotFoundError as error:
            raise FileNotFoundError(str(error)) from None
        except LocalEntryNotFoundError as error:  # the Hub did not answer: that it is not here is no news
            raise ConnectionError(str(error).splitlines()[0]) from error
        size = known.file_size
        if expected is not None and size is not None and size != expected.bytes:
            raise ArtefactError(
                f"{place / name}: {size} bytes, the manifest says {expected.bytes}; the repository was changed after "
                f"sealing: name a revision of before, or ask its owner"
            )
        if expected is None and (size or 0) > LARGEST:
            raise ArtefactError(f"{place / name}: {size} bytes, too many for such a file; name another folder")
        path = Path(hf_hub_download(**whole, revision=revision))  # of a branch: its commit is remembered, for offline
        if expected is not None and not known.is_cached and (found := file_sha256(path)) != expected.sha256:
            os.unlink(path.resolve())  # else the next try would take it from the cache
            path.unlink(missing_ok=True)
            raise OSError(f"sha256 {found[:12]}, the manifest says {expected.sha256[:12]}")
        return path, path.parents[len(PurePosixPath(repository.path(name)).parts) - 1].name

    try:
        return (place / name).tried("fetched", come)
    except FileNotFoundError:
        none = "no sealed folder of this project is there; name the repository, and its folder, that holds one"
        why = none if name == NAME else "though the manifest lists it: the repository is not whole; ask its owner"
        raise ArtefactError(f"{place / name}: missing, {why}") from None
