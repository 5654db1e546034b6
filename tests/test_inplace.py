"""Stored features are read in place as PyTorch would read copies of them, and nothing outside of them is read."""

import copy
import importlib.util
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_release import ARCHITECTURE, TEMPORAL
from test_two_stage import CUBES, features

from distill.catalogue import build, parse_model_config
from distill.model import inplace
from distill.model.towers import Towers
from distill.ranking import executor, two_stage
from distill.retrieval.stored import Tokens, stored

pytestmark = pytest.mark.skipif(
    not inplace.built() and shutil.which("cc") is None, reason="no C compiler: PyTorch reads copies"
)
WEIGHTS = {"video": 0.5, "weak_frame": 0.8, "weak_patch": 0.2, "strong_frame": 0.2, "strong_patch": 0.3}
MODELS = {
    "eercf": {"temporal": TEMPORAL, "frames": 4, "patches": False},
    "eercf with patches": {"temporal": TEMPORAL, "frames": 4},
    "eercf that gates patches": {"temporal": TEMPORAL, "frames": 4, "rerank": WEIGHTS},
    "eercf that hides padding": {"temporal": TEMPORAL, "frames": 4, "rerank": WEIGHTS, "mask_padding": True},
    "glscl": {"temporal": TEMPORAL},
    "prompt_switch by attention": CUBES | {"pooling": "attention"},
    "prompt_switch that hides padding": CUBES | {"pooling": "attention", "mask_padding": True},
}


def built_model(name):
    raw = {"kind": name.split()[0], "clip": {"model": "tiny"}, **MODELS[name]}
    torch.manual_seed(0)
    return build(parse_model_config(raw, "test"), Towers.from_architecture(ARCHITECTURE)).eval()


def cast(some, dtype):
    """The same features in another precision; masks stay."""
    tensors = some.tensors().items()
    return type(some)(**{name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors})


def by_hand(query, keys, values, rows, temperature, counted, unit):
    """Products, pooled, and how much of the values' lengths their sum keeps, in float64, one video at a time."""
    products, pooled, kept = [], [], []
    for row in rows:
        key, value = keys[row].astype(float), values[row].astype(float)
        if unit:
            key = key / np.maximum(np.linalg.norm(key, axis=1, keepdims=True), 1e-12)
            value = value / np.maximum(np.linalg.norm(value, axis=1, keepdims=True), 1e-12)
        along = key @ query
        weights = np.where(counted[row], np.exp((along - along.max()) / temperature), 0)
        weights /= weights.sum()
        total = weights @ value
        products.append(along)
        pooled.append(total @ query / max(np.linalg.norm(total), 1e-12))
        kept.append(np.linalg.norm(total) / (weights @ np.linalg.norm(value, axis=1)))
    return np.array(products), np.array(pooled), np.array(kept)


def test_it_is_built_where_there_is_a_compiler():
    assert inplace.built(), "pip install --editable . builds distill/model/inplace.c"


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([1, 5, 8, 16, 31, 64, 72, 200, 512, 1100]),
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.sampled_from([0.01, 0.3, 3.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=150)
def test_products_and_sums_are_those_of_the_formula(videos, parts, dim, rows, temperature, unit, own, seed):
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(videos, parts, dim, generator=generator).half() for _ in range(2))
    values = keys if own else values
    query = torch.randn(dim, generator=generator) / dim**0.5
    counted = torch.rand(videos, parts, generator=generator) < 0.7
    counted[:, 0] = True
    rows = torch.tensor(rows) % videos
    products, pooled = inplace.pooled(query, keys, values, rows, temperature=temperature, counted=counted, unit=unit)
    expected = by_hand(
        *(some.numpy().astype(np.float64) for some in (query, keys, values)),
        rows.tolist(), temperature, counted.numpy(), unit,
    )  # fmt: skip
    assert np.allclose(products.numpy(), expected[0], atol=2e-6, rtol=2e-6)
    # the softmax magnifies the rounding of products; what is left of values that cancel points anywhere
    whole = expected[2] > 1e-3
    assert np.allclose(pooled.numpy()[whole], expected[1][whole], atol=2e-4, rtol=2e-4)
    with np.errstate(divide="ignore"):  # no sum is longer than the query, but for rounding over what is left of it
        slack = 1e-6 + 4 * np.finfo(np.float32).eps / expected[2]
    assert (pooled.abs().numpy() <= query.norm().item() * (1 + slack)).all()
    assert torch.equal(inplace.products(query, keys, rows, unit=unit), products)


@given(
    st.sampled_from([torch.float32, torch.int8]),
    st.sampled_from([1, 7, 16, 31, 64, 200, 513, 1100]),
    st.booleans(),
    st.integers(0, 99),
)
def test_products_with_keys_of_other_kinds_are_those_of_their_numbers(kind, dim, unit, seed):
    generator = torch.Generator().manual_seed(seed)
    keys, query = torch.randn(5, 3, dim, generator=generator), torch.randn(dim, generator=generator) / dim**0.5
    scales, stored = None, keys
    if kind == torch.int8:
        scales = keys.abs().amax(2) / 127
        stored = (keys / scales.unsqueeze(2)).round().to(torch.int8)
        keys = stored * scales.unsqueeze(2)
    rows = torch.tensor([4, 0, 0, 2])
    found = inplace.products(query, stored, rows, unit=unit, scales=scales)
    expected = (keys.double()[rows] @ query.double()) / (keys.double()[rows].norm(dim=2) if unit else 1)
    assert torch.allclose(found.double(), expected, atol=3e-6, rtol=3e-6)


def test_padding_of_int8_is_zero():
    keys, scales = torch.zeros(1, 2, 64, dtype=torch.int8), torch.full((1, 2), torch.finfo(torch.float32).tiny)
    assert not inplace.products(torch.ones(64), keys, torch.tensor([0]), unit=True, scales=scales).any()


def test_a_mask_of_frames_stands_for_their_patches():
    generator = torch.Generator().manual_seed(0)
    keys, query = torch.randn(3, 12, 16, generator=generator).half(), torch.randn(16, generator=generator)
    real, rows = torch.tensor([[True, False], [True, True], [False, True]]), torch.arange(3)
    found = inplace.pooled(query, keys, keys, rows, temperature=1.0, counted=real)[1]
    parts = real.repeat_interleave(6, dim=1)
    assert torch.equal(found, inplace.pooled(query, keys, keys, rows, temperature=1.0, counted=parts)[1])
    none = inplace.pooled(query, keys, keys, rows, temperature=1.0, counted=torch.zeros(3, 12, dtype=torch.bool))[1]
    mean = keys.float().mean(1)
    assert torch.allclose(none, mean @ query / mean.norm(dim=1), atol=1e-6), "as PyTorch weighs what is all hidden"
    kept = torch.stack([keys[0, :6], keys[2, 6:]])
    assert torch.allclose(found[[0, 2]], inplace.pooled(query, kept, kept, rows[:2], temperature=1.0)[1], atol=1e-6)


@pytest.mark.parametrize("place", [0, 9, 17, 70, 71])  # by sixteens, by eights, and one by one
def test_every_number_of_sixteen_bits_is_read_as_it_is(place):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    finite = numbers[numbers.isfinite()]
    assert len(finite) == 2 * 31 * 1024
    keys = torch.zeros(1, len(finite), 72, dtype=torch.float16)
    keys[0, :, place] = finite
    query = torch.zeros(72)
    query[place] = 1
    assert torch.equal(inplace.products(query, keys, torch.tensor([0]))[0], finite.float())


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("unit", [False, True])
def test_what_is_no_number_is_not_hidden(damage, unit):
    keys = torch.ones(2, 3, 70).half()
    keys[1, 2, 69] = damage
    products, pooled = inplace.pooled(torch.ones(70), keys, keys, torch.arange(2), temperature=1.0, unit=unit)
    assert products[0].isfinite().all() and pooled[0].isfinite()
    assert not products[1].isfinite().all() and not pooled[1].isfinite()


def test_what_would_be_misread_is_refused():
    keys, query, rows = torch.ones(3, 4, 8).half(), torch.ones(8), torch.arange(3)
    for wrong, words in [
        ({"query": query.double()}, r"expected torch.float32 \[8\] .* found torch.float64 \[8\]"),
        ({"query": query[:7]}, r"\[8\] .* \[7\]"),
        ({"keys": keys.float()}, "expected torch.float16"),
        ({"keys": keys.transpose(0, 1)}, "row after row"),
        ({"rows": rows.int()}, "expected torch.int64"),
        ({"values": keys[:, :3].contiguous()}, r"\[3, 4, 8\] .* \[3, 3, 8\]"),
        ({"counted": torch.ones(2, 4) > 0}, r"\[3, 4\] .* \[2, 4\]"),
        ({"counted": torch.ones(3, 3) > 0}, "4 parts of a video in 3 groups"),
        ({"counted": torch.ones(3, 0) > 0}, "4 parts of a video in 0 groups"),
    ]:
        given = {"query": query, "keys": keys, "values": keys, "rows": rows, "counted": None} | wrong
        with pytest.raises(ValueError, match=words):
            inplace._attend(*(given[name] for name in ("query", "keys", "values", "rows", "counted")), 1.0, False)
    whole = torch.ones(3, 4, 8, dtype=torch.int8)
    for kind, scales, words in [
        (whole, None, "int8 keys without scales"),
        (keys, torch.ones(3, 4), "float16 keys with scales"),
        (whole, torch.ones(3, 5), r"\[3, 4\] .* \[3, 5\]"),
        (whole, torch.ones(3, 4).double(), "expected torch.float32"),
    ]:
        with pytest.raises(ValueError, match=words):
            inplace._attend(query, kind, None, rows, None, 1.0, False, scales)
    with pytest.raises(ValueError, match=r"expected torch.float16 .* found torch.int8"):
        inplace._attend(query, whole, whole, rows, None, 1.0, False, None)


@pytest.mark.parametrize("rows", [[0, 3], [-1, 0], [2, 1 << 60]])
def test_rows_outside_are_refused(rows):
    keys = torch.ones(3, 2, 8).half()
    with pytest.raises(IndexError, match=f"{rows[0]} to {rows[-1]} of 3 videos"):
        inplace.products(torch.ones(8), keys, torch.tensor(rows))


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_a_score_is_the_same_in_place(name):
    model, (text, video) = built_model(name), features(videos=40, texts=6)
    tokens, text = Tokens(stored(cast(video, torch.float32), model.rerank_fields)), cast(text, torch.float32)
    rows = torch.tensor([39, 0, 7, 7, 21])
    exact = copy.deepcopy(model).double()
    for part, double in zip(model.score_parts(), exact.score_parts(), strict=True):
        some = tokens.only(part.fields)
        assert executor.reads_in_place(some, part, text)
        read = some[rows]
        expected = double.score(cast(text, torch.float64), cast(read, torch.float64))
        with torch.no_grad():
            for number in range(len(text)):
                found = executor.score_in_place(part, text[number : number + 1], some, rows)
                assert torch.allclose(found.double(), expected[number], atol=2e-5), "up to rounding"


@pytest.mark.parametrize("name", MODELS)
def test_a_search_answers_alike_with_and_without_the_library(name, monkeypatch):
    model, (text, video) = built_model(name), features(videos=60, texts=5)
    text, video = cast(text, torch.float32), cast(video, torch.float32)
    tokens = Tokens(stored(video, model.rerank_fields))
    calls = []
    attend = inplace._attend
    monkeypatch.setattr(inplace, "_attend", lambda *given: calls.append(given) or attend(*given))

    def answers():
        with torch.inference_mode():
            vectors, gallery = model.query_vectors(text), model.index_vectors(video)
            parts = [executor.of_parts(model, text[n : n + 1], tokens.only) for n in range(len(text))]
            return [two_stage.search(own, vectors[n : n + 1], gallery, 5, 20) for n, own in enumerate(parts)]

    in_place = answers()
    assert calls, "the library was asked"
    calls.clear()
    monkeypatch.setattr(inplace, "_library", lambda: None)
    for (scores, rows), (expected, videos) in zip(in_place, answers(), strict=True):
        assert torch.equal(rows, videos) and torch.allclose(scores, expected, atol=2e-5)
    assert not calls


def test_a_library_of_another_system_or_version_is_none(tmp_path, monkeypatch):
    (tmp_path / "other.so").write_bytes(b"\x7fELF, but of another system")
    other = ModuleSpec(inplace.LIBRARY, None, origin=str(tmp_path / "other.so"))
    another = importlib.util.find_spec("_ctypes")
    assert another is not None and another.origin is not None
    for found in (other, ModuleSpec(inplace.LIBRARY, None, origin=another.origin), None):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        inplace._library.cache_clear()
        assert not inplace.built()
    monkeypatch.undo()
    monkeypatch.setattr(inplace, "VERSION", inplace.VERSION + 1)
    inplace._library.cache_clear()
    assert not inplace.built()
    monkeypatch.undo()
    inplace._library.cache_clear()
    assert inplace.built()


def test_threads_do_not_disturb_one_another():
    generator = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(500, 12, 64, generator=generator).half(), torch.randn(40, 64, generator=generator)
    ask = lambda query: inplace.pooled(query, keys, keys, torch.arange(500), temperature=1.0)  # noqa: E731
    expected = [ask(query) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, queries))
    assert all(
        torch.equal(a, b) for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=True)
    )
