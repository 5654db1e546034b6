"""Token ids equal CLIP's, cut as CLIP4Clip cuts them, and a pruned table spells the same sentences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.tokens import Tokenizer, prune

GOLDEN = {
    "a man is driving a car": [49406, 320, 786, 533, 4161, 320, 1615, 49407],
    "Someone's cooking: 3 eggs & ham!": [49406, 2100, 568, 6283, 281, 274, 7099, 261, 1714, 256, 49407],
    "café &amp; naïve   spaces": [49406, 15304, 261, 1097, 35689, 563, 9006, 49407],
}


@pytest.mark.parametrize("text", GOLDEN)
def test_ids_equal_clips(text: str):
    ids = Tokenizer(32)([text])[0]
    assert ids[: len(GOLDEN[text])].tolist() == GOLDEN[text]
    assert not ids[len(GOLDEN[text]) :].any()


def test_a_long_caption_keeps_its_start_and_gets_an_end():
    ids = Tokenizer(32)([" ".join(f"word{n}" for n in range(40))])[0]
    assert len(ids) == 32
    assert ids[-4:].tolist() == [272, 273, 2653, 49407]


WORDS = ["a red apple", "an octopus spins", "on a teal background"]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
def test_a_pruned_table_spells_the_same_sentences(parts: list[str]):
    vocabulary = prune(WORDS)
    text = ", then ".join(parts)
    small, stock = Tokenizer(24, vocabulary)([text])[0], Tokenizer(24)([text])[0]
    known = set(vocabulary)
    for row, token in zip(small, stock, strict=True):
        if token and token in known:
            assert vocabulary[row] == token
        elif token:
            assert row == 1  # the comma and "then" are not in the table
        else:
            assert row == 0


def test_the_end_token_is_the_largest_id_of_any_table():
    for vocabulary in (None, prune(WORDS)):
        tokenizer = Tokenizer(16, vocabulary)
        ids = tokenizer(["a red apple", "zebra crossing ahead"])
        assert (ids.argmax(1) == (ids == tokenizer.end).argmax(1)).all()
        assert ids.max() == tokenizer.end


def test_texts_do_not_depend_on_their_neighbours():
    tokenizer = Tokenizer(16)
    np.testing.assert_array_equal(tokenizer(["a cat", "a dog"])[1], tokenizer(["a dog"])[0])
