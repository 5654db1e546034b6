"""Files that come with the project, wherever it is installed: commands, recipes, and the folders that recipes name."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # a clone, or site-packages


def packaged(path: str | Path, folder: str | Path = "") -> Path:
    """Return `path` inside `folder` if it exists, else the file or folder of that name that comes with the project.

    Only names that begin with `recipes/` come with the project; any other is returned as it stands.
    """
    here, own = Path(folder) / path, ROOT / path
    comes = Path(path).parts[:1] == ("recipes",) and os.path.exists(own)
    return own if comes and not os.path.exists(here) else here
