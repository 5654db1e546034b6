"""Damaged and hostile files: a small sample of `make mutations`, and a look at whether it would notice."""

from pathlib import Path
from random import Random

import pytest
import torch
from mutations import campaign
from mutations.artefacts import prepare
from mutations.readers import READERS, Reader

from distill.config import read_recipe
from distill.errors import RecipeError
from distill.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole artefacts of every kind."""
    folder = tmp_path_factory.mktemp("mutations")
    prepare(folder / "whole")
    return folder


@pytest.mark.slow
def test_every_reader_refuses_what_is_damaged_or_is_not_harmed_by_it(folder: Path):
    torch.set_num_threads(1)
    tallies = campaign.campaign(folder, list(READERS), count=4 * len(READERS), seed=3)
    assert not [finding for tally in tallies.values() for finding in tally.findings]
    assert all(tally.mutations == 4 and tally.refused + tally.harmless == 4 for tally in tallies.values())


@pytest.mark.parametrize(
    ("does", "end"),
    [
        (lambda path, whole: (whole.scratch / "MARKER").mkdir(), "RAN"),
        (lambda path, whole: bytearray(b"x") * (1200 << 20) and None, "LARGE"),
        (lambda path, whole: {}["a key"], "KeyError"),
        (lambda path, whole: (path / "pipe").read_bytes(), "HUNG"),
        (lambda path, whole: [].fail, "AttributeError"),
    ],
)
def test_the_campaign_notices(does, end, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    monkeypatch.setattr(campaign, "SECONDS", 4.0 if end == "HUNG" else 60.0)
    os.mkfifo(tmp_path / "pipe")
    whole = campaign.Whole(tmp_path, tmp_path / "scratch", None, None, None)  # type: ignore[arg-type]
    assert campaign.apart(Reader(does), tmp_path, whole, None)[0] == end


def test_a_change_is_drawn_by_its_seed(folder: Path, tmp_path: Path):
    import shutil

    made = []
    for name in ("a", "b"):
        shutil.copytree(folder / "whole" / "recipe", tmp_path / name)
        what = campaign.mutate(tmp_path / name, READERS["recipe"], Random(5))
        made.append((what, sorted((p.name, p.read_bytes()) for p in (tmp_path / name).iterdir() if p.is_file())))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [1]\nb: *a\n", "alias"),
        ("seed: 1\nseed: 2\n", "'seed' stands twice"),
        ("seed: 2001-99-99\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.mkdir [MARKER]\n", "not valid YAML"),
        ("seed: " + "[" * 3000, "not valid YAML"),
    ],
)
def test_what_a_recipe_may_not_say(text: str, words: str, tmp_path: Path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=words) as caught:
        read_recipe(tmp_path / "r.yaml", [], Recipe)
    assert "r.yaml" in str(caught.value)


def test_a_folder_in_place_of_a_recipe(tmp_path: Path):
    with pytest.raises(RecipeError, match="a folder, expected a plain file"):
        read_recipe(tmp_path, [], Recipe)
