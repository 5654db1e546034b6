"""Ranks, summaries and bootstraps against brute force, trec_eval and the tie rule; scores by others."""

import numpy as np
import pytest
import pytrec_eval
import torch
from conftest import launch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import ExpectedError
from distill.evaluation import counting
from distill.evaluation.metrics import paired_bootstrap, ranks_t2v, ranks_v2t, recall_interval, summarise
from distill.evaluation.normalise import bank_of, dual_softmax, query_bank_t2v
from distill.retrieval.calibration import BETA


def det(*shape, seed):
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))


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


@settings(max_examples=50)
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


def test_a_gain_of_one_run_in_three_is_not_certain():
    """However many videos there are: another three runs may be without it."""
    groups, runs = torch.arange(400).repeat(3), torch.arange(3).repeat_interleave(400)
    good, poor = torch.zeros(1200, dtype=torch.long), ((runs == 0) & (groups % 2 == 0)).long()
    difference, low, high = paired_bootstrap(good, poor, groups, 0, "R@1", runs)
    assert difference == pytest.approx(50 / 3) and low == 0 and high > 30
    assert paired_bootstrap(good, poor, groups, 0)[1] > 10, "over videos alone it looks certain"


def test_bootstrap_over_runs_and_videos_agrees_with_drawing_them_one_by_one():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 4, 30)  # captions of a video
    groups = torch.from_numpy(np.tile(np.repeat(np.arange(30), sizes), 4))
    runs = torch.arange(4).repeat_interleave(int(sizes.sum()))
    good, poor = (torch.from_numpy(rng.integers(0, 3, len(groups))) for _ in range(2))
    gain = (poor - good).double().numpy()
    table = [[gain[(runs == r).numpy() & (groups == g).numpy()] for g in range(30)] for r in range(4)]
    drawn = []
    for _ in range(4000):
        videos, chosen = rng.integers(30, size=30), rng.integers(4, size=4)
        drawn.append(np.concatenate([table[r][g] for r in chosen for g in videos]).mean())
    difference, low, high = paired_bootstrap(poor, good, groups, 0, "MnR", runs)
    assert difference == pytest.approx(gain.mean())
    assert (low, high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.05)


@st.composite
def retrieval(draw):
    """Scores and the video of every text, several captions a video, every video with one at least; ties or none."""
    seed, num_videos, spare = draw(st.integers(0, 999)), draw(st.integers(1, 25)), draw(st.integers(0, 40))
    rng = np.random.default_rng(seed)
    own = rng.permutation(np.concatenate([np.arange(num_videos), rng.integers(0, num_videos, spare)]))
    shape = (len(own), num_videos)
    scores = rng.integers(0, 4, shape) if draw(st.booleans()) else rng.standard_normal(shape)
    return scores.astype(np.float32), own


def trec_eval(queries, hits):
    """Return what trec_eval makes of queries, each a row of scores of documents, and of the one document that is a hit.

    Among equal scores trec_eval puts the document with the greatest name first; our rule wants the hit last.
    """
    names = [[f"{'a' if doc == hit else 'b'}{doc}" for doc in range(queries.shape[1])] for hit in hits]
    judge = pytrec_eval.RelevanceEvaluator(
        {str(query): {names[query][hit]: 1} for query, hit in enumerate(hits)}, {"success_1,5,10", "recip_rank"}
    )
    run = {str(query): dict(zip(names[query], map(float, row), strict=True)) for query, row in enumerate(queries)}
    judged = judge.evaluate(run)
    ranks = np.array([round(1 / judged[str(query)]["recip_rank"]) for query in range(len(hits))])
    recall = {f"R@{k}": 100 * np.mean([one[f"success_{k}"] for one in judged.values()]) for k in (1, 5, 10)}
    return ranks, recall | {"MdR": np.median(ranks), "MnR": ranks.mean()}


@settings(max_examples=60)
@given(retrieval())
def test_text_to_video_agrees_with_trec_eval(case):
    scores, own = case
    ranks, expected = trec_eval(scores, own)
    found = ranks_t2v(torch.from_numpy(scores), torch.from_numpy(own))
    assert (found + 1).tolist() == ranks.tolist()
    assert summarise(found) == pytest.approx(expected)


@settings(max_examples=60)
@given(retrieval())
def test_video_to_text_agrees_with_trec_eval_on_groups_of_captions(case):
    scores, own = case
    groups = np.stack([scores[own == video].max(0) for video in range(scores.shape[1])])  # group video
    ranks, expected = trec_eval(groups.T, np.arange(scores.shape[1]))
    found = ranks_v2t(torch.from_numpy(scores), torch.from_numpy(own))
    assert (found + 1).tolist() == ranks.tolist()
    assert summarise(found) == pytest.approx(expected)


def test_video_to_text_finds_at_once_what_trec_eval_finds_among_single_captions():
    """With every caption a document of its own, the first one is a hit exactly where the video's group is first."""
    rng = np.random.default_rng(4)
    own = rng.permutation(np.repeat(np.arange(20), 3))
    scores = rng.standard_normal((60, 20)).astype(np.float32)
    scores[np.arange(60), own] += 1
    judge = pytrec_eval.RelevanceEvaluator(
        {str(video): {str(text): 1 for text in np.flatnonzero(own == video)} for video in range(20)}, {"success_1"}
    )
    judged = judge.evaluate(
        {str(video): {str(text): float(scores[text, video]) for text in range(60)} for video in range(20)}
    )
    found = ranks_v2t(torch.from_numpy(scores), torch.from_numpy(own)) == 0
    assert found.tolist() == [bool(judged[str(video)]["success_1"]) for video in range(20)]
    assert 0 < found.sum() < 20


def test_recall_interval_holds_the_recall_and_shrinks_with_more_videos():
    def width(videos):
        ranks = torch.arange(2 * videos) % 4  # a quarter is found first
        low, high = recall_interval(ranks, torch.arange(2 * videos) // 2, 1, seed=0)
        assert low < 25 < high
        return high - low

    assert width(1000) < width(100) / 2
    ranks = torch.tensor([0, 7, 3, 0])
    assert recall_interval(ranks, torch.arange(4), 10, seed=0) == (100, 100)


def test_recall_interval_draws_the_captions_of_a_video_together():
    ranks = torch.randint(0, 5, (30,), generator=torch.Generator().manual_seed(0))
    once = recall_interval(ranks, torch.arange(30), 1, seed=3)
    repeated = recall_interval(ranks.repeat_interleave(8), torch.arange(30).repeat_interleave(8), 1, seed=3)
    assert repeated == pytest.approx(once)


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(1, 6), st.floats(0.1, 100), st.integers(0, 999))
def test_dual_softmax_is_the_formula(num_texts, num_videos, scale, seed):
    logits = (scale * np.random.default_rng(seed).standard_normal((num_texts, num_videos))).astype(np.float32)
    t2v, v2t = np.zeros(logits.shape), np.zeros(logits.shape)
    for t in range(num_texts):
        for v in range(num_videos):
            texts = sum(np.exp(float(logits[i, v]) - float(logits[t, v])) for i in range(num_texts))
            videos = sum(np.exp(float(logits[t, j]) - float(logits[t, v])) for j in range(num_videos))
            t2v[t, v], v2t[t, v] = logits[t, v] / texts, logits[t, v] / videos
    assert np.allclose(dual_softmax(torch.from_numpy(logits), 0).numpy(), t2v, rtol=1e-9, atol=1e-12)
    assert np.allclose(dual_softmax(torch.from_numpy(logits), 1).numpy(), v2t, rtol=1e-9, atol=1e-12)


def test_dual_softmax_keeps_distant_videos_apart():
    """At a logit scale of 100 a float's softmax is 0 for both, and their order is lost."""
    logits = torch.tensor([[99.0, -20.0, -30.0], [-99.0, 99.0, 99.0]])
    found = dual_softmax(logits, 0)
    assert found[0, 1] != found[0, 2] and (logits * logits.softmax(0))[0, 1] == (logits * logits.softmax(0))[0, 2]


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 9), st.integers(0, 999))
def test_query_bank_normalisation_is_the_formula(num_texts, num_videos, num_queries, seed):
    rng = np.random.default_rng(seed)
    similarity, queries = (rng.uniform(-1, 1, (n, num_videos)).astype(np.float32) for n in (num_texts, num_queries))
    activated = {int(np.argmax(query)) for query in queries}
    expected = similarity.astype(np.float64)
    for t in range(num_texts):
        if int(np.argmax(similarity[t])) in activated:
            for v in range(num_videos):
                total = sum(np.exp(20.0 * float(query[v])) for query in queries)
                expected[t, v] = np.exp(20.0 * float(similarity[t, v])) / total
    bank = bank_of(torch.from_numpy(queries).split(4), num_videos)
    found = query_bank_t2v(torch.from_numpy(similarity), bank).numpy()
    assert BETA == 20
    assert set(np.flatnonzero(bank.first)) == activated
    for t in range(num_texts):
        if int(np.argmax(similarity[t])) in activated:
            assert np.allclose(np.exp(found[t]), expected[t], rtol=1e-9)
        else:
            assert (found[t] == expected[t]).all()
    own = torch.from_numpy(rng.integers(0, num_videos, num_texts))
    assert torch.equal(ranks_t2v(torch.from_numpy(found), own), ranks_t2v(torch.from_numpy(expected), own))


def test_query_bank_normalisation_puts_a_hub_down():
    """Video 0 is liked by everything; asked what else it answers, it makes way for the right videos."""
    similarity = torch.eye(4) * 0.5
    similarity[:, 0] = 0.6
    assert ranks_t2v(similarity, torch.arange(4)).tolist() == [0, 1, 1, 1]
    assert ranks_t2v(query_bank_t2v(similarity, bank_of([similarity], 4)), torch.arange(4)).tolist()[1:] == [0, 0, 0]


@pytest.mark.parametrize("held", [0, 1 << 30])
@pytest.mark.parametrize(("texts", "videos", "part"), [(1, 1, 4), (37, 11, 4), (40, 40, 7), (64, 9, 16)])
def test_ranks_that_are_counted_are_those_of_the_whole(held, texts, videos, part, monkeypatch):
    """Few values, so many ties; videos without captions; captions of one video on both sides of a part's end."""
    monkeypatch.setattr(counting, "HELD", held)
    similarity = det(texts, videos, seed=texts).mul(2).round()
    own = torch.from_numpy(np.sort(np.random.RandomState(1).randint(0, videos, texts)))
    gone = []

    def parts():
        gone.append(1)
        return iter(similarity.split(part))

    found = counting.count_ranks(parts, part, videos, own, first=10)
    assert torch.equal(found.t2v, ranks_t2v(similarity, own)) and torch.equal(found.v2t, ranks_v2t(similarity, own))
    assert torch.equal(found.own, similarity[torch.arange(texts), own])
    best = similarity.sort(dim=1, descending=True).values[:, :10]
    assert torch.equal(found.first_scores, best) and torch.equal(similarity.gather(1, found.first), best)
    assert len(gone) == (1 if held else 2)
    for place in (0, texts - 1):
        damaged = similarity.clone()
        damaged[place, videos - 1] = torch.nan
        with pytest.raises(ExpectedError) as expected:
            ranks_t2v(damaged, own)
        with pytest.raises(ExpectedError) as found:
            counting.count_ranks(lambda d=damaged: iter(d.split(part)), part, videos, own)
        assert str(found.value) == str(expected.value)


COUNTED = """
import torch
import torch.distributed as dist
from distill import comm
from distill.evaluation import counting
from distill.evaluation.metrics import ranks_t2v, ranks_v2t

dist.init_process_group("gloo")
counting.HELD = HELD
for texts, videos, part in ((1, 1, 4), (13, 5, 2), (41, 40, 7), (64, 9, 16)):
    generator = torch.Generator().manual_seed(texts)
    similarity = torch.randn(texts, videos, generator=generator).mul(2).round()
    own = torch.randint(videos, (texts,), generator=generator).sort().values
    rows = torch.tensor(comm.share(texts))
    found = counting.count_ranks(lambda: iter(similarity[rows].split(part)), part, videos, own, first=3)
    assert torch.equal(found.t2v, ranks_t2v(similarity, own)), texts
    assert torch.equal(found.v2t, ranks_v2t(similarity, own)), texts
    assert torch.equal(found.own, similarity[torch.arange(texts), own])
    assert torch.equal(found.first_scores, similarity.sort(dim=1, descending=True).values[:, :3])
if comm.rank() == 0:
    print("as one process ranks them")
comm.close()
"""


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_processes_count_the_ranks_that_one_does(held: int, tmp_path):
    """Shares that are not equal, too: the last row stands in for the one that is missing."""
    script = tmp_path / "counted.py"
    script.write_text(COUNTED.replace("HELD = HELD", f"HELD = {held}"))
    assert "as one process ranks them" in launch(2, script).stdout
