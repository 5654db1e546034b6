"""Ranks, summaries and the bootstrap against stored values, brute force and the tie rule."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from distill.errors import ExpectedError
from distill.evaluation.metrics import paired_bootstrap, ranks_t2v, ranks_v2t, summarise

FIXTURES = Path(__file__).parent / "fixtures"


def read(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())["values"], load_file(FIXTURES / f"{name}.safetensors")


def det(*shape, seed):
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))


def agrees(summary, values, direction, median=True):
    names = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MeanR": "MnR"} | ({"MedianR": "MdR"} if median else {})
    return all(summary[ours] == pytest.approx(values[f"{direction}.{theirs}"]) for theirs, ours in names.items())


def test_one_caption_per_video_equals_the_authors():
    values, tensors = read("m15_metrics_single")
    similarity, own = tensors["input.similarity"], torch.arange(60)
    t2v, v2t = ranks_t2v(similarity, own), ranks_v2t(similarity, own)
    assert torch.equal(t2v, tensors["output.t2v.ranks0"]) and torch.equal(v2t, tensors["output.v2t.ranks0"])
    assert agrees(summarise(t2v), values, "t2v") and agrees(summarise(v2t), values, "v2t")


def test_several_captions_per_video_equal_the_authors():
    values, tensors = read("m16_metrics_multi_caption")
    similarity, own = tensors["input.similarity"], tensors["input.caption_owner"]
    t2v, v2t = ranks_t2v(similarity, own), ranks_v2t(similarity, own)
    assert torch.equal(v2t, tensors["output.v2t.ranks0"])
    assert agrees(summarise(v2t), values, "v2t") and agrees(summarise(t2v), values, "t2v", median=False)
    assert int(t2v.median()) + 1 == values["t2v.MedianR"]  # the lower of two middles, as the authors take it there


def test_ties_count_against_the_model():
    """The authors' code gives this matrix seven ranks, counting query 2 at both tied positions, 4 and 5."""
    similarity = det(6, 6, seed=11)
    similarity[2, 4] = similarity[2, 2]
    assert ranks_t2v(similarity, torch.arange(6)).tolist() == [0, 1, 5, 4, 3, 1]


def test_several_captions_golden():
    similarity, own = det(6, 3, seed=12), torch.tensor([0, 0, 1, 1, 1, 2])
    t2v = ranks_t2v(similarity, own)
    assert summarise(t2v) == pytest.approx({"R@1": 100 / 6, "R@5": 100, "R@10": 100, "MdR": 3, "MnR": 2.5})
    assert ranks_v2t(similarity, own).tolist() == [1, 2, 2]


def test_a_constant_similarity_finds_nothing():
    similarity, own = torch.zeros(4, 4), torch.arange(4)
    assert ranks_t2v(similarity, own).tolist() == [3] * 4
    assert ranks_v2t(similarity, own).tolist() == [3] * 4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 999))
def test_ranks_equal_brute_force(num_texts, num_videos, seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 4, (num_texts, num_videos)).astype(np.float32)  # many ties
    own = rng.integers(0, num_videos, num_texts)
    expected = [
        sum(similarity[t, v] >= similarity[t, own[t]] for v in range(num_videos) if v != own[t])
        for t in range(num_texts)
    ]
    given_ = torch.from_numpy(similarity), torch.from_numpy(own)
    assert ranks_t2v(*given_).tolist() == expected
    captioned = sorted(set(own.tolist()))
    expected = []
    for v in captioned:
        best = {g: similarity[own == g, v].max() for g in captioned}
        expected.append(sum(best[g] >= best[v] for g in captioned if g != v))
    assert ranks_v2t(*given_).tolist() == expected


def test_ranks_of_chunks_are_the_ranks_of_all():
    similarity, own = torch.randn(50, 20), torch.randint(0, 20, (50,))
    chunks = [ranks_t2v(part, rows) for part, rows in zip(similarity.split(7), own.split(7), strict=True)]
    assert torch.equal(torch.cat(chunks), ranks_t2v(similarity, own))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ranks", [ranks_t2v, ranks_v2t])
def test_scores_that_are_not_finite_are_an_error(bad, ranks):
    similarity = torch.randn(4, 4)
    similarity[2, 3] = bad
    with pytest.raises(ExpectedError, match="similarity of text 2 and video 3"):
        ranks(similarity, torch.arange(4))


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(ExpectedError, match="no queries"):
        summarise(torch.zeros(0, dtype=torch.long))


def test_median_of_an_even_count_is_the_mean_of_the_middles():
    assert summarise(torch.tensor([0, 1, 4, 9]))["MdR"] == 3.5


def test_bootstrap_finds_a_clear_difference_and_repeats():
    groups = torch.arange(200) // 2
    good, poor = torch.zeros(200, dtype=torch.long), (torch.arange(200) % 4 == 0).long()
    difference, low, high = paired_bootstrap(good, poor, groups, seed=0)
    assert difference == 25 and 15 < low < 25 < high < 35
    assert paired_bootstrap(good, poor, groups, seed=0) == (difference, low, high)
    assert paired_bootstrap(good, good, groups, seed=0) == (0, 0, 0)


def test_bootstrap_draws_videos_not_captions():
    """Captions that agree within a video carry no more evidence than one caption of it would."""
    good = torch.zeros(20, dtype=torch.long)
    poor = (torch.arange(20) % 4 == 0).long()
    once = paired_bootstrap(good, poor, torch.arange(20), seed=1)
    repeated = (x.repeat_interleave(10) for x in (good, poor, torch.arange(20)))
    assert paired_bootstrap(*repeated, seed=1) == pytest.approx(once)
