"""The pages that are written from the code say what the code says."""

import pytest
from house import ARCHITECTURE, ROOT, TESTS, pages
from reference import PAGE, comments, page

from distill.config import Config


def test_the_recipe_reference_is_that_of_the_recipe_tree():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make reference"


def test_every_key_of_a_recipe_says_what_it_means():
    silent = [line for line in page().splitlines() if line.startswith("| `") and line.split(" | ")[3].strip() == ""]
    assert not [line for line in silent if "| see " not in line and "| `kind` |" not in line], (
        "a comment beside the field"
    )


def test_a_meaning_is_the_comment_beside_the_field():
    class Part(Config):
        size: int = 3  # of a side,
        long: int = max(
            1,  # first
            2,
        )
        # alone on a line: no meaning
        bare: int = 0

    assert comments(Part) == {"size": "of a side,", "long": "first"}


@pytest.mark.parametrize("path", [ARCHITECTURE, TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_picture_of_the_house_and_the_table_of_tests_are_those_of_the_imports(path):
    assert path.read_text(encoding="utf-8") == pages()[path], "run make reference"
