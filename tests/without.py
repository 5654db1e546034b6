"""`python tests/without.py PACKAGE,PACKAGE SCRIPT [ARGUMENT ...]`: a script where these packages are not installed."""

import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)


class Without(PathFinder):
    """Finds what is installed, but for some packages."""

    packages: frozenset[str] = frozenset()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """Return where a module is; None for one of those packages."""
        return None if fullname.partition(".")[0] in cls.packages else PathFinder.find_spec(fullname, path, target)


if __name__ == "__main__":
    Without.packages = frozenset(sys.argv[1].split(","))
    sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
