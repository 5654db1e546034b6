"""The report of an evaluation as text: the protocol and gallery, a table of results, and a table for every other score.

Results with different fingerprints never stand in one table (`result.check_comparable`).
"""

from collections.abc import Sequence

from distill.evaluation.protocol import PROTOCOLS
from distill.evaluation.result import COLUMNS, BankMetrics, Graded, Metrics, Reranked, Result
from distill.evaluation.standing import SHOWN
from distill.model.second_look import SecondLook
from distill.retrieval.calibration import BETA
from distill.terminal import printable


def report(result: Result, earlier: Sequence[Result]) -> str:
    """Return the report of a result beside earlier ones of the same fingerprint."""
    results = [result, *earlier]
    head = [
        f"protocol  {result.protocol}: {PROTOCOLS[result.protocol].split}",
        f"gallery   {result.gallery.videos:,} videos, {result.gallery.captions:,} captions, "
        f"fingerprint {result.fingerprint[:SHOWN]}",
        f"          {result.gallery.words}",
    ]
    blocks = ["\n".join(head), _table([(r.subject.release, r.scores) for r in results])]
    others: dict[str, list[tuple[str, Metrics]]] = {
        "Second look: the score is the cosine of the vectors plus that of the frames that answer the text, with\n"
        "weights that were chosen on the validation set when the release was trained.": [
            (_with_look(r.subject.release, again.look), again.measured) for r in results if (again := r.second_look)
        ],
        "Two stages: every query retrieves candidates by inner product, which the full score then ranks. Shared\n"
        "top 10: how much of the ten best by the full score of everything (first table) is found.": [
            (_with_candidates(r.subject.release, stage), stage.measured) for r in results for stage in r.two_stage
        ],
        "DSL (dual softmax): every answer uses all other test queries, which no search engine has. Not to be "
        "compared with\nresults without it.": [(r.subject.release, r.dsl) for r in results if r.dsl],
        f"QB-Norm (dynamic inverted softmax, beta {BETA:g}): every answer uses a bank of other queries, but no test "
        "query.\nNot to be compared with results without it or with another bank.": [
            (_with_bank(r.subject.release, r.qbnorm), r.qbnorm.measured) for r in results if r.qbnorm
        ],
    }
    blocks += [f"{words}\n{_table(rows)}" for words, rows in others.items() if rows]
    return "\n\n".join([*blocks, *_by_truth(results), *_repeated(result)])


def _by_truth(results: Sequence[Result]) -> list[str]:
    """Return a block for every truth that results were measured against."""
    blocks: dict[tuple[str, str], list[tuple[str, Graded]]] = {}
    for one in results:
        if one.graded:
            blocks.setdefault((one.graded.source_id, str(one.graded.share)), []).append(
                (one.subject.release, one.graded)
            )
    return [_graded(rows) for rows in blocks.values()]


def _graded(rows: Sequence[tuple[str, Graded]]) -> str:
    first = rows[0][1]
    origin = "judgements" if first.kind == "qrels" else f"pairs with {first.share:g} of the matched pair's score"
    words = (
        f"Graded truth ({origin}: {first.source}, {first.source_id[:SHOWN]}): {first.relevant:,} relevant pairs; for "
        f"{first.several:,} captions another video\nis as right as their own, and counts in this R@1. Not the papers' "
        f"figures."
    )
    columns = [(side, name) for side in ("t2v", "v2t") for name in first.metrics[side]]
    lines = [["", *(f"{side.upper()} {name} [95 %]" for side, name in columns)]]
    for title, found in rows:
        cells = [(found.metrics[side][name], *found.intervals[side][name]) for side, name in columns]
        lines.append([title, *(f"{value:.1f} [{low:.1f}, {high:.1f}]" for value, low, high in cells)])
    return f"{words}\n{aligned(lines)}"


def _repeated(result: Result) -> list[str]:
    """Return the sentence about captions of several videos."""
    found = result.near_duplicates
    if found is None:
        return []
    by_truth = "" if found.by_truth is None else f"; for {found.by_truth:,} another video is right by the graded truth"
    return [
        f"Near duplicates: {found.same_words:,} of {found.captions:,} captions have the words of a caption of another "
        f"video (without case, articles and signs){by_truth}."
    ]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return a table as text, the first column aligned to the left and the others to the right."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _with_bank(release: str, by_bank: BankMetrics) -> str:
    return f"{release}, bank {by_bank.bank} ({by_bank.queries:,} captions, {by_bank.bank_id[:SHOWN]})"


def _with_look(release: str, look: SecondLook) -> str:
    return f"{release} (temperature {look.temperature:g}; weight {look.t2v:g} for T2V, {look.v2t:g} for V2T)"


def _with_candidates(release: str, stage: Reranked) -> str:
    shared = ", ".join(f"{direction.upper()} {value:.1f} %" for direction, value in stage.shared.items())
    return f"{release}, {stage.candidates:,} candidates (shared top 10: {shared})"


def _table(rows: Sequence[tuple[str, Metrics]]) -> str:
    columns = [(way, name) for way in ("t2v", "v2t") if way in rows[0][1].metrics for name in COLUMNS]  # QB-Norm: t2v
    lines = [["", *(f"{way.upper()} R@1 [95 %]" if name == "R@1" else name for way, name in columns)]]
    lines += [[title, *(_cell(measured, way, name) for way, name in columns)] for title, measured in rows]
    return aligned(lines)


def _cell(measured: Metrics, direction: str, name: str) -> str:
    value = f"{measured.metrics[direction][name]:.1f}"
    if name != "R@1":
        return value
    low, high = measured.intervals[direction][name]
    return f"{value} [{low:.1f}, {high:.1f}]"
