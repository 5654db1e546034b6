"""Token ids equal CLIP's, cut as CLIP4Clip cuts them, and a pruned table spells the same sentences."""

import functools
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from distill.data.bpe import merges_text, read_bpe, stock, stock_merges
from distill.data.cleaning import CLEAN
from distill.data.tokens import Tokenizer, prune, warn_of_cuts
from distill.errors import ArtefactError

clips = functools.cache(SimpleTokenizer().encode)
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


def test_the_table_is_as_large_as_clips():
    assert stock().size == len(SimpleTokenizer().encoder)


def test_a_table_in_a_file_gives_the_same_ids_and_another_file_is_refused(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text(merges_text(stock_merges()), encoding="utf-8")
    for text in GOLDEN:
        assert Tokenizer(32, bpe=read_bpe(path))([text]).tolist() == Tokenizer(32)([text]).tolist()
    for content in (b"a b c\n", b"one two\n", b"\xff\xfe", b"i n\n" * 10**6, None):
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(ArtefactError, match=r"merges.txt: not a table of pairs to merge"):
            read_bpe(path)


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


@given(st.text(st.characters(max_codepoint=0x17F), max_size=40))
@example("A man's  CAR, <start_of_text> &amp; 42 don't&")
@example("tabs\tand \x1b[31mcolours\x1b[0m")
def test_words_spelled_one_by_one_give_the_ids_of_the_whole_text(text: str):
    ids = Tokenizer(300)([text])[0]
    assert ids[1 : ids.argmax()].tolist() == clips(text)


@given(st.text(max_size=40))
@example("a\u0345b\u0345")  # a mark that is a letter only where capitals do not matter
@example("<START_OF_TEXT>!!<end_of_text>, I\u2019LL &amp;lt; \ud83d\ude00 \U0001f600 \ufb01")
def test_any_text_has_the_ids_of_open_clips_tokenizer(text: str):
    assert stock().encode(text) == clips(text)


@pytest.mark.parametrize("way", ["canonicalize", "lower", "whitespace"])
@given(text=st.text(max_size=40))
@example(text="A  b_c, d! \u00c3\u00a9 &amp;amp;lt; \u3000x")
def test_texts_are_cleaned_as_open_clip_cleans_them(way, text: str):
    assert CLEAN[way](text) == get_clean_fn(way)(text)


def counts(texts: Sequence[str], max_words: int) -> tuple[int, int]:
    """Cut captions, and those of them that equal another by it: every pair is compared."""
    spelled, room = [clips(text) for text in texts], max_words - 2
    cut = [own for own in spelled if len(own) > room]
    return len(cut), sum(any(own != one and own[:room] == one[:room] for one in spelled) for own in cut)


def said(texts: Sequence[str], max_words: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    warn_of_cuts(texts, Tokenizer(max_words), "my/train.csv", "shorten them")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("max_words", [9, 10, 11, 12, 24])
def test_cut_captions_are_counted_in_one_line_with_those_that_become_equal(max_words: int, caplog):
    stem = "a person walks through the green forest and"
    texts = [stem, f"{stem} then", f"{stem} then falls", f"{stem} sings", f"{stem} sings", "a cat", f"{stem} é"]
    texts += [f"{stem} antidisestablishmentarianism", f"  {stem.upper()}\tTHEN", "five " * 12, "five &amp; " * 5]
    cut, equal = counts(texts, max_words)
    line = (
        f"my/train.csv: {cut} of 11 captions are cut at {max_words} tokens (start and end included), {equal} of them "
        f"become equal to others by it; shorten them"
    )
    assert said(texts, max_words, caplog) == ([line] if cut else [])
    assert (max_words == 24) == (cut == 0)


@given(texts=st.lists(st.text("ab é1,", max_size=14), max_size=8), max_words=st.integers(3, 8))
def test_any_captions_are_counted_as_pair_by_pair(texts: list[str], max_words: int):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("distill.data.tokens")
    logger.addHandler(handler)
    try:
        warn_of_cuts(texts, Tokenizer(max_words), "my", "shorten them")
    finally:
        logger.removeHandler(handler)
    cut, equal = counts(texts, max_words)
    assert len(lines) == (cut > 0)
    assert all(f" {cut} of {len(texts)} captions" in line and f" {equal} of them" in line for line in lines)
