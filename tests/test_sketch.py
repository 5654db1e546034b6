"""Sketches: rounding chooses what is looked at, and never what is answered."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.retrieval import sketch as module
from distill.retrieval.sketch import Sketch
from distill.retrieval.topk import top_k


def drawn(rows: int, dim: int, spread: float, seed: int, far: float = 1.0) -> torch.Tensor:
    """Vectors around a common one, some of them equal, of lengths between 1 and `far`."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(1, dim, generator=generator) + spread * torch.randn(rows, dim, generator=generator)
    vectors = vectors / vectors.norm(dim=1, keepdim=True) * torch.linspace(1, far, rows).unsqueeze(1)
    return vectors[torch.randint(rows, (rows,), generator=generator)]


@given(
    st.integers(1, 300),
    st.integers(1, 70),
    st.sampled_from([1e-4, 1e-2, 1.0]),
    st.integers(1, 40),
    st.sampled_from([1.0, 50.0]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_an_answer_is_that_of_the_whole_product(rows, dim, spread, k, far, seed):
    """Vectors may differ by less than rounding sees, and scores may be equal."""
    vectors, queries = drawn(rows, dim, spread, seed, far), drawn(5, dim, 1.0, seed + 1)
    # Products of small whole numbers are exact in any order of adding, so that equal scores are equal here and there.
    vectors, queries = (vectors * 64).round() / 64, (queries * 64).round() / 64
    expected, found = top_k(queries, vectors, k), Sketch(vectors).top_k(queries, k)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])


def test_rounding_alone_would_answer_otherwise():
    vectors, queries = drawn(4000, 64, 0.02, 3), drawn(20, 64, 1.0, 4)
    sketch = Sketch(vectors)
    expected = top_k(queries, vectors, 10)[1]
    assert not torch.equal(sketch.recall(queries, 10), expected.sort(dim=1).values)
    assert torch.equal(sketch.top_k(queries, 10)[1], expected)


def test_what_is_recalled_is_nearly_the_best():
    vectors, queries = drawn(4000, 512, 3.0, 5), drawn(20, 512, 3.0, 6)
    sketch, exact = Sketch(vectors), queries @ vectors.T
    found, expected = sketch.recall(queries, 200), top_k(queries, vectors, 200)[1]
    assert (found.diff(dim=1) > 0).all() and found.shape == (20, 200)
    shared = [torch.isin(mine, theirs).double().mean() for mine, theirs in zip(found, expected, strict=True)]
    assert min(shared) > 0.95
    worst, last = exact.gather(1, found).amin(1), exact.gather(1, expected).amin(1)
    assert (last - worst).max() < 0.005


@pytest.mark.parametrize("cells", [1, 700])
def test_queries_are_searched_a_few_at_a_time(cells, monkeypatch):
    vectors, queries = drawn(300, 16, 1.0, 7), drawn(9, 16, 1.0, 8)
    whole, recalled = Sketch(vectors).top_k(queries, 5), Sketch(vectors).recall(queries, 5)
    monkeypatch.setattr(module, "CELLS", cells)
    monkeypatch.setattr(module, "ROWS", 7)
    parts = Sketch(vectors).top_k(queries, 5)
    assert torch.equal(whole[1], parts[1]) and torch.equal(recalled, Sketch(vectors).recall(queries, 5))


def test_vectors_of_nothing_but_zeros_are_all_alike():
    found = Sketch(torch.zeros(6, 8)).top_k(torch.ones(2, 8), 4)
    assert found[1].tolist() == [[0, 1, 2, 3]] * 2 and not found[0].any()
