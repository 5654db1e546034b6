"""Two stages: candidates are ranked by the full score, others follow, and nothing else is ever scored."""

import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_release import ARCHITECTURE, TEMPORAL

from distill.catalogue import build, parse_model_config
from distill.evaluation.metrics import ranks_t2v, ranks_v2t
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.model.towers import Towers
from distill.ranking import executor, two_stage
from distill.ranking.topk import top_k
from distill.retrieval.columns import ColumnWriter, mapped_tokens, row_bytes
from distill.retrieval.stored import Tokens, arrays, stored, tensors

VIDEOS, TEXTS, FRAMES, DIM = 23, 31, 4, 64
ON_TOP = {"temporal": TEMPORAL}
CUBES = {"prompts": 2, "frames": 2, "captions": None}
STUDENTS = {
    "eercf": ON_TOP | {"frames": FRAMES, "patches": False},
    "eercf with patches": ON_TOP | {"frames": FRAMES},
    "glscl by concepts": ON_TOP | {"index_by": "concepts"},
    "glscl by coarse vector": ON_TOP | {"index_by": "coarse"},
    "prompt_switch by the top frames": CUBES | {"pooling": "top_k", "k": 2, "mask_padding": True},
    "prompt_switch by attention": CUBES | {"pooling": "attention"},
    "prompt_switch by a transformer": CUBES | {"pooling": "transformer", "heads": 4},
}


def student(name, seed=0):
    """A random student of two stages, in double precision."""
    raw = {"kind": name.split()[0], "clip": {"model": "tiny"}, **STUDENTS[name]}
    torch.manual_seed(seed)
    return build(parse_model_config(raw, "test"), Towers.from_architecture(ARCHITECTURE)).eval().double()


def features(videos=VIDEOS, texts=TEXTS, seed=0):
    """Features that the towers might give for texts and for videos."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    text = TextFeatures(sentence=drawn(texts, DIM), concepts=unit(drawn(texts, 8, DIM)))
    real = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (videos, 1), generator=generator)
    video = VideoFeatures(
        vector=drawn(videos, DIM),
        frames=drawn(videos, FRAMES, DIM),
        contextual=drawn(videos, FRAMES, DIM),
        patches=drawn(videos, FRAMES, 16, DIM),
        concepts=unit(drawn(videos, 8, DIM)),
        real=real,
    )
    return text, video


class Watched:
    """A score of pairs that is no function of the index vectors, and remembers which pairs it was asked for."""

    def __init__(self, queries, candidates, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.scores = torch.randn(queries, candidates, generator=generator, dtype=torch.float64)
        self.asked, self.calls = torch.zeros(queries, candidates, dtype=torch.bool), 0

    def __call__(self, queries, candidates):
        self.asked[queries[:, None], candidates] = True
        self.calls += 1
        return self.scores[queries[:, None], candidates]


@pytest.mark.parametrize("name", STUDENTS)
def test_ranking_the_whole_gallery_is_the_exhaustive_search(name):
    model, (text, video) = student(name), features()
    with torch.no_grad():
        whole = model.similarity(text, video)
        by_text, by_video = model.query_vectors(text), model.index_vectors(video)
    for pairs, queries, vectors, expected in (
        (executor.of_texts(model.similarity, text, video), by_text, by_video, whole),
        (executor.of_videos(model.similarity, text, video), by_video, by_text, whole.T),
    ):
        found = two_stage.ranking(pairs, queries, vectors, len(vectors))
        assert torch.allclose(found, expected, atol=1e-12)
        assert torch.equal(found.argsort(1, descending=True), expected.argsort(1, descending=True))
        scores, rows = two_stage.search([(pairs, 1)], queries, vectors, 5, len(vectors))
        best = expected.topk(5)
        assert torch.equal(rows, best.indices) and torch.allclose(scores, best.values, atol=1e-12)
    own = torch.arange(TEXTS) % VIDEOS
    both = two_stage.ranking(executor.of_videos(model.similarity, text, video), by_video, by_text, TEXTS).T
    assert torch.equal(ranks_v2t(both, own), ranks_v2t(whole, own))
    both = two_stage.ranking(executor.of_texts(model.similarity, text, video), by_text, by_video, VIDEOS)
    assert torch.equal(ranks_t2v(both, own), ranks_t2v(whole, own))


def parts(model, text, video):
    """Those of a model's score, of features that are all held."""
    return executor.of_parts(model, text, lambda fields: only(video, fields))


def only(video, fields):
    """Features without what a part does not name, so that it cannot use it."""
    return VideoFeatures(**{name: video.tensors()[name] for name in ("vector", *fields)})


@pytest.mark.parametrize("name", STUDENTS)
def test_the_parts_of_a_score_sum_up_to_it_from_the_fields_they_name(name):
    model, (text, video) = student(name), features()
    if name.endswith("transformer"):
        assert model.score_parts() == (), "a score that is no sum"
        return
    with torch.no_grad():
        found = [part.score(text, only(video, part.fields)) for part in model.score_parts()]
        assert torch.allclose(torch.stack(found).sum(0), model.similarity(text, video), atol=1e-12)
    named = {field for part in model.score_parts() for field in part.fields}
    assert named | {"real"} == set(model.rerank_fields), "galleries store these, and the mask whether it is read or not"
    assert ("real" in named) == (model.mask_padding or name.startswith("glscl"))
    assert len(found) == (2 if name.startswith("glscl") or name.endswith("patches") else 1)


@given(
    st.integers(1, 20), st.integers(1, 60), st.integers(1, 60), st.integers(1, 14), st.integers(1, 3), st.integers(0, 9)
)
@settings(max_examples=40)
def test_later_parts_are_added_for_the_best_by_the_first_and_no_others(queries, candidates, count, k, of_best, seed):
    first, second = Watched(queries, candidates, seed), Watched(queries, candidates, seed + 100)
    order = torch.rand(queries, candidates, generator=torch.Generator().manual_seed(seed)).argsort(1)
    chosen = order[:, : max(k, count)]
    with patch.object(two_stage, "SHARED", 0):
        scores, rows = two_stage.best_of([(first, 1), (second, of_best)], chosen, k)
    assert torch.equal(first.asked, torch.zeros_like(first.asked).scatter(1, chosen, True))
    for query in range(queries):
        best = sorted(chosen[query].tolist(), key=lambda video: -first.scores[query, video])[: of_best * max(k, 10)]
        assert second.asked[query].nonzero()[:, 0].tolist() == sorted(best)
        both = {video: float(first.scores[query, video] + second.scores[query, video]) for video in best}
        expected = sorted(best, key=lambda video: -both[video])[:k]
        assert rows[query].tolist() == expected and scores[query].tolist() == [both[video] for video in expected]


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("count", [1, 6])
def test_the_candidates_have_their_full_scores_and_lead_the_others(name, count):
    model, (text, video) = student(name), features()
    with torch.no_grad():
        whole = model.similarity(text, video)
        coarse = model.query_vectors(text) @ model.index_vectors(video).T
    found = two_stage.ranking(
        executor.of_texts(model.similarity, text, video), model.query_vectors(text), model.index_vectors(video), count
    )
    for row in range(TEXTS):
        expected = coarse[row].topk(count).indices
        order = found[row].argsort(descending=True)
        assert set(order[:count].tolist()) == set(expected.tolist())
        assert torch.allclose(found[row, expected], whole[row, expected], atol=1e-12)
        rest = [video for video in coarse[row].argsort(descending=True).tolist() if video not in expected]
        assert order[count:].tolist() == rest, "the others follow by their inner product"


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=40)
def test_only_candidates_are_ranked_whatever_is_scored_together(num_queries, num_candidates, count, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, vectors = (torch.randn(n, 6, generator=generator).double() for n in (num_queries, num_candidates))
    watched = Watched(num_queries, num_candidates, seed)
    chosen = top_k(queries, vectors, count)[1]
    scores = two_stage.rerank(watched, chosen)
    assert torch.equal(scores, watched.scores.gather(1, chosen))
    _, rows = two_stage.search([(watched, 1)], queries, vectors, 3, count)
    reach = top_k(queries, vectors, max(3, count))[1]
    for row in range(num_queries):
        expected = sorted(reach[row].tolist(), key=lambda video: -watched.scores[row, video])[:3]
        assert rows[row].tolist() == expected


def test_few_queries_in_a_large_gallery_are_scored_with_their_own_candidates_alone():
    generator = torch.Generator().manual_seed(1)
    queries, vectors = torch.randn(8, 6, generator=generator), torch.randn(4000, 6, generator=generator)
    watched, chosen = Watched(8, 4000), top_k(queries, vectors, 20)[1]
    two_stage.rerank(watched, chosen)
    assert torch.equal(watched.asked, torch.zeros_like(watched.asked).scatter(1, chosen, True))
    alike = Watched(8, 4000)
    two_stage.rerank(alike, chosen[:1].expand(8, -1))
    assert alike.calls == 1, "one call where all have the same candidates"


@pytest.mark.parametrize("asks", [executor.of_texts, executor.of_videos])
def test_memory_stays_bounded(asks, monkeypatch):
    text, video = features(300, 300)
    monkeypatch.setattr(executor, "CALL", 20 * sum(value[0].numel() for value in video.tensors().values()))
    called = []

    def similarity(text, video):
        called.append((len(text), len(video)))
        return torch.zeros(len(text), len(video))

    chosen = torch.arange(300).expand(40, -1)
    assert two_stage.rerank(asks(similarity, text, video), chosen).shape == (40, 300)
    most = executor.in_one_call(video) if asks is executor.of_texts else two_stage.TOGETHER
    assert most <= 20 and max(videos for _, videos in called) <= most
    assert sum(texts * videos for texts, videos in called) == 40 * 300


@pytest.mark.parametrize("name", ["eercf", "eercf with patches", "glscl by coarse vector"])
def test_permuting_the_gallery_permutes_the_answer(name):
    model, (text, video) = student(name), features()
    order = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(3))
    shuffled = video[order]
    with torch.no_grad():
        by_text = model.query_vectors(text)
        scores, rows = two_stage.search(parts(model, text, video), by_text, model.index_vectors(video), 1, 9)
        again, places = two_stage.search(parts(model, text, shuffled), by_text, model.index_vectors(shuffled), 1, 9)
    assert torch.equal(order[places], rows) and torch.allclose(scores, again, atol=1e-12)


def test_among_equal_scores_the_lower_number_wins():
    queries = torch.ones(1, 1)
    vectors = torch.tensor([[0.1], [0.9], [0.8], [0.7]])
    equal = lambda q, c: torch.zeros(len(q), len(c))  # noqa: E731
    _, rows = two_stage.search([(equal, 1)], queries, vectors, 3, 3)
    assert rows.tolist() == [[1, 2, 3]]
    _, rows = two_stage.search([(equal, 1), (equal, 2)], queries, vectors, 1, 4)
    assert rows.tolist() == [[0]]


def test_tokens_are_read_back_as_they_were_rounded(tmp_path):
    text, video = features()
    model = student("eercf with patches").float()
    kept = stored(video, model.rerank_fields)
    with (tmp_path / "tokens.safetensors").open("wb") as file:
        writer = ColumnWriter(file, VIDEOS)
        for start in range(0, VIDEOS, 10):
            writer.append(arrays(stored(video[start : start + 10], model.rerank_fields)))
    tokens = Tokens(tensors(mapped_tokens(tmp_path / "tokens.safetensors")))
    assert tokens.stored.keys() == kept.keys() == {"vector", "frames", "contextual", "patches", "real"}
    assert all(torch.equal(tokens.stored[name], kept[name]) for name in kept)
    rows = torch.tensor([22, 0, 5])
    assert torch.equal(tokens[rows].frames, video.frames[rows].half().float()) and tokens[rows].real.dtype == torch.bool
    expected = 2 * (DIM + 2 * FRAMES * DIM + FRAMES * 16 * DIM) + FRAMES
    assert row_bytes(arrays(kept)) == expected
    queries, vectors = text.sentence.float(), video.vector.float()
    exact = VideoFeatures(**{name: v.float() if v.dtype != torch.bool else v for name, v in video.tensors().items()})
    query = TextFeatures(sentence=queries)
    full = two_stage.ranking(executor.of_texts(model.similarity, query, exact), queries, vectors, 6)
    found = two_stage.ranking(executor.of_texts(model.similarity, query, tokens), queries, vectors, 6)
    assert (full - found).abs().max() < 0.01, "what rounding to float16 changes"


def test_tokens_larger_than_the_memory_are_opened(tmp_path):
    path = tmp_path / "tokens.safetensors"
    videos = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (2 * DIM)
    with path.open("wb") as file:
        ColumnWriter(file, videos).append({"vector": np.ones((3, DIM), np.float16)})
        file.truncate(file.seek(0, 2) + (videos - 3) * 2 * DIM)  # of which the disk holds the first rows alone
    found = Tokens(tensors(mapped_tokens(path)))[torch.tensor([0, 2, 3, videos - 1])].vector
    assert torch.equal(found, torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None].expand(4, DIM))
