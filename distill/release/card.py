"""Model cards: the README of a release, with the metadata block that the Hugging Face Hub reads. Offline.

There is no Hub task for text-to-video retrieval, so `pipeline_tag` is feature-extraction and the task stands in the
tags. Only measured numbers are shown: recall in percent, ranks from 1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
    metadata_load,
)
from yaml import YAMLError

from distill import hub
from distill.catalogue import INTERACTIONS
from distill.errors import ArtefactError

TAGS = ["text-to-video-retrieval", "video-text-retrieval", "knowledge-distillation", "clip"]
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
HELD_OUT, VALIDATION = "a held-out frame set", "the validation set, by which the weights were chosen"
METRICS = {"R@1": "recall_at_1", "R@5": "recall_at_5", "R@10": "recall_at_10", "MdR": "median_rank", "MnR": "mean_rank"}

WHAT = """\
A text-to-video retrieval model of the kind `{kind}`: it says how well a text and a video match, so that the best videos
can answer a query. Made with the retrieval-distill toolkit.\
"""

SIZE = "`model.safetensors` holds {:,} parameters in float32: {:,.1f} MB."

USAGE = """\
```python
import distill.release

model = distill.release.load("path/to/this/folder")
text = model.encode_text(["a dog catches a frisbee"])
video = model.encode_video("clip.mp4")
print(model.model.similarity(text, video))  # [text, video]
```
"""

SEARCH = """\
A whole collection, packed by `tools/pack_frames.py` with the frame settings of `config.json`:

```
python tools/index.py path/to/this/folder FRAMES --out GALLERY --videos VIDEOS
python tools/search.py GALLERY "a dog catches a frisbee"
```
"""

SENTENCES = """\
It also opens as a model of sentence-transformers, which gives the same vectors of texts and of videos (paths of
files, or sampled frames):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", trust_remote_code=True)  # by the installed retrieval-distill
print(model.similarity(model.encode(["a dog catches a frisbee"]), model.encode(["clip.mp4"])))
```
"""

TEACH = """\
It is a teacher: it scores a text and a video together, so it cannot be indexed. Its labels train a student that can:

```
python tools/dump_soft_labels.py path/to/this/folder FRAMES --out LABELS
```
"""

LIMITS = """\
Measured numbers hold for the evaluation set named; on other videos and other ways of speaking they will differ.
A video is seen through a few sampled frames, without sound or on-screen text recognition, and the model inherits the
biases of the CLIP weights it started from and of the captions it was trained on. Judge it on your own queries first.
"""

LICENCE = """\
The toolkit's code is Apache-2.0. The weights are another matter: they derive from CLIP weights, a teacher and videos
with terms of their own. Check those, then add `license:` to the metadata of this card before you publish it.
"""


def model_card(
    kind: str, provenance: Mapping[str, Any], stored: tuple[int, int] | None, *, parameters: int, left_out: int = 0
) -> str:
    """Return the card of a model of that kind as text.

    It shows of `provenance` (`distill/provenance.py`), where present, the metrics of `test` and `validation` (summaries
    of ranks by direction, `t2v` and `v2t`; in `test` the same under `second_look`), what the model was made of and by,
    and what it cost; or the file that converted weights came from.
    `stored` are the bytes that a gallery holds per video (`distill.retrieval.stored.bytes_per_video`) of a model
    that can be searched. `parameters` are counted in the file, `left_out` were needed in training only.
    """
    name, metrics = provenance.get("name", kind), provenance.get("test", {})
    measured, again = _by_direction(metrics), _by_direction(metrics.get("second_look", {}))
    chosen, evaluated_on = _by_direction(provenance.get("validation", {})), provenance.get("evaluated_on", HELD_OUT)
    data = ModelCardData(
        library_name="retrieval-distill",
        pipeline_tag="feature-extraction",
        tags=[*TAGS, "sentence-transformers"] if stored is not None and not stored[1] else TAGS,
        model_name=name if measured else None,
        metrics=list(METRICS.values()) if measured else None,
        eval_results=_results(measured, evaluated_on) or None,
    )
    trained = f" Another {left_out:,} parameters only took part in training and are left out." if left_out else ""
    sections = {
        "What it is": f"{WHAT.format(kind=kind)}\n\n{SIZE.format(parameters, 4e-6 * parameters)}{trained}",
        "How to use it": f"{USAGE}\n{TEACH if kind in INTERACTIONS else SEARCH}{_stored(stored)}{_query(provenance)}",
        "Measured": _table(measured, again, evaluated_on) if measured else "Not evaluated.",
        **({"Validation": _table(chosen, {}, VALIDATION)} if chosen else {}),
        "Training": _training(provenance),
        "Limits": LIMITS,
        "Licence": LICENCE + _licences(provenance),
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{body}\n"))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a card ({}: none); `ArtefactError` for what is no YAML."""
    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise ArtefactError(f"{path}: its metadata cannot be read ({said}); restore it, or release again") from None


def eval_results(provenance: Mapping[str, Any]) -> bytes | None:
    """Return the metrics as the Hub reads them from `.eval_results/`; None of a model that was not tested."""
    on, metrics = provenance.get("evaluated_on", ""), provenance.get("test", {})
    from_hub = hub.Repository.named(on) if on.startswith(hub.PREFIX) else None
    entries = [
        EvalResultEntry(
            dataset_id=from_hub.id if from_hub else on,
            dataset_revision=from_hub.revision if from_hub else None,
            task_id=f"{direction}_{METRICS[metric]}",
            value=round(value, 4),
            notes=f"{DIRECTIONS[direction]} {metric}{'' if from_hub else ', on frames that are no dataset of the Hub'}",
        )
        for direction in DIRECTIONS
        for metric, value in metrics.get(direction, {}).items()
        if metric in METRICS
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries)).encode() if entries else None


def _query(provenance: Mapping[str, Any]) -> str:
    query = provenance.get("query")
    if not query:
        return ""
    scored = f", and {query['score_ms']:,.3f} ms to score with {query['videos']:,} videos" if query["videos"] else ""
    return f"\nA query takes {query['encode_ms']:,.3f} ms to encode{scored} ({_machine(provenance['hardware'])}).\n"


def _machine(hardware: Mapping[str, Any]) -> str:
    return hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"


def _licences(provenance: Mapping[str, Any]) -> str:
    """Return what the inputs state of their licences, as a table."""
    sets = {f"{key} frames": known["licence"] for key, known in provenance.get("frame_sets", {}).items()}
    teachers = {f"teacher of {one['labels']}": one["licence"] for one in provenance.get("teachers", [])}
    towers = {"towers": provenance["towers"]["licence"]} if "towers" in provenance else {}
    rows = [f"| {name} | {said or 'not stated'} |" for name, said in {**towers, **sets, **teachers}.items()]
    return "\n".join(["", "| input | licence that it states |", "|---|---|", *rows]) if rows else ""


def _stored(stored: tuple[int, int] | None) -> str:
    if stored is None:
        return ""
    vector, tokens = stored
    if not tokens:
        one = f"A gallery stores one vector per video, {vector:,} bytes; its inner product with a query is the score."
        return f"\n{one}\n\n{SENTENCES}"
    return (
        f"\nIt searches in two stages. A gallery stores a vector of {vector:,} bytes per video, whose inner "
        f"product with a query finds the candidates, and {tokens:,} bytes of tokens (float16), from which these are "
        "reranked; `--candidates` says how many.\n"
    )


def _results(measured: Mapping[str, Mapping[str, float]], evaluated_on: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name=f"{DIRECTIONS[direction]} retrieval",
            dataset_type="custom",
            dataset_name=evaluated_on,
            dataset_args={"direction": direction},
            metric_type=METRICS[metric],
            metric_name=f"{direction} {metric}",
            metric_value=round(value, 4),
        )
        for direction, summary in measured.items()
        for metric, value in summary.items()
        if metric in METRICS
    ]


def _by_direction(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {direction: metrics[direction] for direction in DIRECTIONS if direction in metrics}


def _table(
    measured: Mapping[str, Mapping[str, float]], looked_again: Mapping[str, Mapping[str, float]], evaluated_on: str
) -> str:
    columns = [metric for metric in METRICS if any(metric in summary for summary in measured.values())]
    lines = [f"On {evaluated_on}. R@k in percent; MdR and MnR are the median and the mean rank.", ""]
    lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    rows = [(DIRECTIONS[direction], summary) for direction, summary in measured.items()]
    rows += [(f"{DIRECTIONS[direction]}, with a second look", summary) for direction, summary in looked_again.items()]
    for title, summary in rows:
        cells = [f"{summary[metric]:.1f}" if metric in summary else "" for metric in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    if looked_again:
        lines += ["", "A second look also compares the text with the video's frames (`--second-look` of a search)."]
    return "\n".join(lines)


def _made(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return rows about teachers, code, machine and cost, as far as they are known."""
    rows = {}
    for one in provenance.get("teachers", []):
        weights = f", weights sha256 `{one['weights_sha256']}`" if one["weights_sha256"] else ""
        rows[f"teacher of {one['labels']}"] = f"{one['kind']} `{one['id']}`{weights}"
    if "recipe_sha256" in provenance:
        rows["recipe"] = f"sha256 `{provenance['recipe_sha256']}`"
        rows["command"] = f"`{provenance['command']}`"
        rows["hardware"] = f"{provenance['hardware']['processes']} process(es), {_machine(provenance['hardware'])}"
    if commit := provenance.get("commit"):
        rows["commit"] = f"`{commit['id']}`{', with changes' if commit['changed'] else ''}"
    if cost := provenance.get("cost"):
        rows["steps"] = f"{cost['steps']:,}, {cost['samples']:,} pairs"
        if cost["flops"] is not None:
            rows["floating-point operations"] = f"{cost['flops']:.3e} ({cost['flops_of']})"
        if cost["joules"] is not None:
            rows["energy"] = f"{cost['joules'] / 3.6e6:.4f} kWh"
    return {name: row.replace("|", "\\|").replace("\n", " ") for name, row in rows.items()}


def _training(provenance: Mapping[str, Any]) -> str:
    if "converted" in provenance:
        source = provenance["converted"]
        return (
            f"Not trained with this toolkit: converted from `{source['file']}` (sha256 `{source['sha256']}`), a "
            f"{source['kind']} checkpoint of its authors' code. No metrics were measured; `provenance.json` says what "
            f"became of every tensor."
        )
    rows = {str(name): f"`{found}`" for name, found in provenance.get("parents", {}).items()}
    if captions := provenance.get("captions"):
        rows["captions by source"] = ", ".join(f"{source} {number:,}" for source, number in captions.items())
    for name, used in provenance.get("temperatures", {}).items():
        rows[f"temperatures of {name} (auto)"] = ", ".join(f"{loss} {value:g}" for loss, value in used.items())
    rows |= _made(provenance)
    if "seconds" in provenance:
        rows["training time"] = f"{provenance['seconds'] / 3600:.2f} h"
    rows |= {str(name): str(version) for name, version in provenance.get("versions", {}).items()}
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*(table if rows else []), "", "The resolved recipe is in `provenance.json`."])
