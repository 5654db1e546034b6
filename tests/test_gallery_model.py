"""Galleries beside a dictionary: whatever is changed in whatever order, answers are the reference's."""

import pytest
from conftest import quick
from galleries import Walk, walk

from distill.retrieval import upkeep


@pytest.mark.parametrize("seed", quick(range(2), [0]))
def test_a_random_walk_ends_where_the_reference_does(tmp_path, seed):
    walk(tmp_path / "walk", seed, steps=20)


def test_a_walk_notices_a_row_that_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "delete", lambda path, names: None)
    with pytest.raises(AssertionError, match=r"delete: \d+ videos, not "):
        walk(tmp_path / "walk", 0, steps=40)


def test_a_walk_notices_a_wrong_order(tmp_path, monkeypatch):
    whole = Walk.near
    monkeypatch.setattr(Walk, "near", lambda self, hits, *rest: whole(self, hits.reverse() or hits, *rest))
    with pytest.raises(AssertionError, match=r"where [-0-9.e]+ belongs"):
        walk(tmp_path / "walk", 1, steps=3)
