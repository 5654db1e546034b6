"""Queries that no video of the demo's corpus answers, and how many of them a calibrated gallery tells from true ones.

A third are letters without sense, a third words for things that the corpus never shows, a third phrases of such words.
"""

import random
from collections.abc import Callable, Sequence

from distill.retrieval.hits import Hit

TOGETHER = 64  # queries searched at once
WORDS = """
quarterly tax report invoice parliament mortgage chemistry lawyer opera sonata granite glacier tunnel dentist
surgery recipe pasta sauce drill welding carpenter knitting hallway senator election debate philosophy algebra
theorem equation router modem password insurance refund warranty customs luggage subway plumbing faucet ceiling
curtain mattress detergent laundry wallpaper diploma lecture seminar exam grammar verb paragraph essay poet
sculptor auction antique armour siege treaty embassy diplomat currency inflation dividend audit payroll pension
"""  # for things that no clip shows


def nonsense(count: int, seed: int) -> list[str]:
    """Draw so many queries."""
    random_ = random.Random(seed)
    kinds = (_letters, _words, _phrase)
    return [kinds[number % len(kinds)](random_) for number in range(count)]


def caught(search: Callable[[Sequence[str], int], list[list[Hit]]], queries: Sequence[str]) -> float:
    """Return the percent of queries of which a gallery's search says that nothing fits them well."""
    without = 0
    for start in range(0, len(queries), TOGETHER):
        answers = search(queries[start : start + TOGETHER], 1)
        without += sum(not hits[0].fits for hits in answers)
    return 100 * without / len(queries)


def _letters(drawn: random.Random) -> str:
    lengths = [drawn.randint(3, 9) for _ in range(drawn.randint(1, 5))]
    return " ".join("".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=length)) for length in lengths)


def _words(drawn: random.Random) -> str:
    return " ".join(drawn.choices(WORDS.split(), k=drawn.randint(2, 6)))


def _phrase(drawn: random.Random) -> str:
    one, other = drawn.sample(WORDS.split(), 2)
    return f"a {one} {drawn.choice(('of', 'in', 'beside', 'without', 'about', 'before'))} the {other}"
