"""Places that a gallery remembers: its release, its video folders and its sources, as paths relative to itself.

So a gallery is found with all that was moved together with it, from any working directory. Galleries of format 2 hold
paths as they were given to the command that made them.
"""

import os
from pathlib import Path
from typing import Any

from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.remote import Place, RemotePath
from distill.retrieval import generation

AS_GIVEN = 2  # the last format with such paths


def stored(gallery: Path, place: Place) -> str:
    """Return a place as the gallery stores it: the path from the gallery's folder, or a URL.

    A folder that is a link keeps its own name, so that the link may point elsewhere later; folders above are resolved.
    """
    if isinstance(place, RemotePath):
        return str(place)
    above, name = os.path.split(os.path.abspath(place))
    return os.path.relpath(os.path.join(os.path.realpath(above), name), os.path.realpath(gallery))


def found(gallery: Path, manifest: Manifest, place: str) -> Path:
    """Return the path of a stored place, absolute unless an earlier version stored another."""
    if manifest.version <= AS_GIVEN:
        return Path(place)
    return Path(os.path.normpath(os.path.join(os.path.realpath(gallery), place)))


def release_path(gallery: str | Path, moved: Place | None = None) -> Place:
    """Return where a gallery's release was when it was made, or was `moved`; `ArtefactError` where there is none."""
    path = moved
    if path is None:
        manifest = generation.read(Path(gallery))
        path = found(Path(gallery), manifest, manifest.config["release"])
    if isinstance(path, RemotePath):
        return path
    if not path.is_dir():
        raise ArtefactError(f"{gallery}: its release is not at {path}; give its place by --release")
    return path


def present_config(gallery: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the config of a gallery with places as this version stores them."""
    config = dict(manifest.config)
    if manifest.version > AS_GIVEN:
        return config

    def kept(place: str) -> str:
        return place if "://" in place else stored(gallery, Path(place))

    made_of = [made | {"source": kept(made["source"])} for made in config.get("made_of", [])]
    folders = [kept(folder) for folder in config["folders"]]
    return config | {"release": kept(config["release"]), "folders": folders, "made_of": made_of}


def moved(gallery: Path, manifest: Manifest, videos: Path) -> dict[str, Any]:
    """Return the config with `videos` in place of the only video folder, or of the only one that is not there any more.

    Sources below that folder move with it. Raises `ExpectedError` if it is not clear which folder is meant.
    """
    config, folders = manifest.config, manifest.config["folders"]
    missing = [folder for folder in folders if not found(gallery, manifest, folder).is_dir()]
    meant = folders if len(folders) == 1 else missing
    if len(meant) != 1 or not videos.is_dir():
        where = ", ".join(str(found(gallery, manifest, folder)) for folder in folders) or "no folder"
        raise ExpectedError(
            f"{gallery}: its videos are in {where}, of which {len(missing)} are missing; expected --videos to name a "
            "folder that takes the place of the only one, or of the only one that is missing"
        )
    old, new = meant[0], stored(gallery, videos)

    def with_it(source: str) -> str:
        inside = os.path.relpath(source, old)
        return source if "://" in source or inside.startswith("..") else os.path.normpath(os.path.join(new, inside))

    return config | {
        "folders": [new if folder == old else folder for folder in folders],
        "made_of": [made | {"source": with_it(made["source"])} for made in config["made_of"]],
    }
