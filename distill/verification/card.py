"""The numbers of a model card, by place, and their comparison with those that the card should have."""

import re
from collections.abc import Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import yaml

from distill.release.card import model_card, read_metadata
from distill.verification.claims import Claim, compared, unchecked

CARD, RESULTS = "card", ".eval_results"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
LARGEST, MOST, LONGEST = 1 << 20, 1000, 100  # bytes of a card, metrics of its metadata, characters of one
LEFT_OUT = re.compile(r"Another ([\d,]+) parameters")


def check_card(
    path: Path, kind: str, provenance: Mapping[str, Any], stored: tuple[int, int] | None, *, parameters: int, own: bool
) -> list[Claim]:
    """Compare the numbers of a card with those of the card that this version writes from what was found.

    `own`: this version wrote it, so that its sentences must have the same numbers too.
    """
    if path.stat().st_size > LARGEST:
        return [unchecked(CARD, None, f"{path.stat().st_size:,} bytes, too many for a card")]
    text = path.read_text(encoding="utf-8", errors="replace")
    left_out = int(found[1].replace(",", "")) if (found := LEFT_OUT.search(text)) else 0
    expected = model_card(kind, provenance, stored, parameters=parameters, left_out=left_out)
    stated = numbers(text) | _metadata_numbers(read_metadata(path))
    derived = numbers(expected) | _metadata_numbers(yaml.safe_load(expected.split("---")[1]))
    claims = _differences(CARD, stated, derived, own)
    if left_out:
        claims.append(unchecked(f"{CARD}: parameters left out", left_out, "only training had them"))
    return claims


def check_results(stated: Any, expected: Any) -> list[Claim]:
    """Compare the metrics of `.eval_results/` with those that were found."""
    return _differences(RESULTS, _by_task(stated), _by_task(expected), own=True)


def _by_task(entries: Any) -> dict[str, Any]:
    rows = [one for one in entries[:MOST] if isinstance(one, dict)] if isinstance(entries, list) else []
    sets = [one.get("dataset") for one in rows]
    return {
        str(about.get("task_id") if isinstance(about, dict) else None): one.get("value")
        for one, about in zip(rows, sets, strict=True)
    }


def numbers(text: str) -> dict[str, str]:
    """Return the numbers of a card by where they stand: a cell of a table, or a sentence of a section."""
    found: dict[str, str] = {}
    section, columns, lines, code = "", [], count(1), False
    for line in re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).splitlines():
        code ^= line.startswith("```")
        if line.startswith("## "):
            section, columns, lines = line[3:].strip(), [], count(1)
        elif line.startswith("|") and not code:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if "-" in line and set("".join(cells)) <= set("-:"):
                continue
            if not columns or cells[0] == "":
                columns = cells
                continue
            for column, cell in zip(columns[1:], cells[1:], strict=False):
                found[", ".join(part for part in (section, cells[0], column) if part)] = cell
        elif not code and (said := NUMBER.findall(line)):
            columns = []
            found[f"{section}, sentence {next(lines)}"] = " ".join(said)
        elif not line.startswith("|"):
            columns = []
    return found


def _metadata_numbers(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics of the metadata that the Hub reads (`model-index`)."""
    index = metadata.get("model-index") or []
    try:
        metrics = (metric for model in index for result in model["results"] for metric in result["metrics"])
        # Aliases may make a small file stand for any number of them.
        return {
            f"model-index, {one.get('name') or one['type']}": str(one["value"])[:LONGEST]
            for one in islice(metrics, MOST)
        }
    except (KeyError, TypeError, AttributeError):
        return {"model-index": "not as the Hub has it"}


def _differences(where: str, stated: Mapping[str, Any], derived: Mapping[str, Any], own: bool) -> list[Claim]:
    """Return a claim for every number that differs, or is on one side alone, and one for all that are equal."""
    claims, equal = [], 0
    for place in dict.fromkeys([*stated, *derived]):
        one, other = stated.get(place), derived.get(place)
        if one == other:
            equal += 1
        elif own or (one is not None and other is not None and "sentence" not in place):
            claims.append(Claim(f"{where}: {place}", one, other, "differs"))
        elif one is not None:
            claims.append(unchecked(f"{where}: {place}", one, "another version wrote the card"))
    return [compared(f"{where}: other numbers" if claims else f"{where}: numbers", equal, equal), *claims]
