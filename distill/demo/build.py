"""The writer of the demo corpus: H.264 files, annotations in MSR-VTT layout, and the relevance of every second.

The folder is a pure function of (number of clips, seed), with any number of processes. A run that was stopped continues
where it was; a folder that holds anything else is refused. Annotations are written last, so a folder that has them is
complete.
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distill.data.video import write_video
from distill.demo.corpus import MORE, SPLITS, ClipSpec, plan
from distill.demo.draw import FPS, draw_clip
from distill.demo.emoji import ATTRIBUTION, EMOJI, sprite
from distill.demo.truth import judgements
from distill.errors import ExpectedError
from distill.log import progress
from distill.publishing import publish
from distill.records import canonical_json, write_json
from distill.workers import worker_pool

VERSION = 1  # raise it with any change to script, drawing or encoding, so that older files are not mixed in
MARK = "corpus.json"


def make_corpus(out: Path, num_clips: int, seed: int, workers: int | None = None, more: int = 0) -> dict[str, int]:
    """Write the corpus for `num_clips` training clips into `out`; return the number of clips of each split.

    `more` clips like those of training may be added at any time. Raises `ExpectedError` for numbers out of range, and
    for a folder that holds something else.
    """
    if num_clips < 1:
        raise ExpectedError(f"--clips {num_clips}: expected at least 1 training clip")
    if more < 0:
        raise ExpectedError(f"--more {more}: expected 0 or more")
    if seed < 0:
        raise ExpectedError(f"--seed {seed}: expected 0 or more")
    sprite(EMOJI[0].char)  # raises now if the package of pictures is missing, before the folder is touched
    clips, splits = plan(num_clips, seed, more), (*SPLITS, *([MORE] if more else []))
    _claim_folder(out, num_clips, seed)
    _write_videos(clips, out / "videos", seed, workers or os.cpu_count() or 1)
    _write_annotations(clips, splits, out)
    return {split: sum(clip.split == split for clip in clips) for split in splits}


def _write_clip(clip: ClipSpec, folder: Path, seed: int) -> None:
    write_video(folder / f"{clip.video}.mp4", draw_clip(clip, seed), FPS)


def check_corpus(out: Path, num_clips: int, seed: int) -> None:
    """Raise `ExpectedError` if a folder is marked as another corpus than that of so many training clips."""
    mark, wanted = out / MARK, _mark(num_clips, seed)
    if not mark.is_file():
        return
    try:
        marked = json.loads(mark.read_text(encoding="utf-8"))
    except ValueError:
        marked = None
    if marked != wanted:
        here, asked = (json.dumps(value, sort_keys=True) for value in (marked, wanted))
        raise ExpectedError(
            f"{out}: holds another corpus ({here}), expected {asked}; give a new folder, or delete this one"
        )


def _mark(num_clips: int, seed: int) -> dict[str, int]:
    return {"version": VERSION, "clips": num_clips, "seed": seed}


def _claim_folder(out: Path, num_clips: int, seed: int) -> None:
    """Mark an empty folder as this corpus, or check the mark of an earlier run."""
    mark = out / MARK
    if out.exists() and not out.is_dir():
        raise ExpectedError(f"{out}: is a file; expected a folder to write the demo into; give another --out")
    if not mark.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ExpectedError(f"{out}: not empty and not a demo corpus; give --out a new or empty folder")
        write_json(mark, _mark(num_clips, seed))
    check_corpus(out, num_clips, seed)


def _write_videos(clips: Sequence[ClipSpec], folder: Path, seed: int, workers: int) -> None:
    """Write the clips that are not there yet, in `workers` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {entry.name for entry in os.scandir(folder)}  # files appear whole, by a rename
    todo = [clip for clip in clips if f"{clip.video}.mp4" not in done]
    write = partial(_write_clip, folder=folder, seed=seed)
    if workers == 1 or len(todo) < 2:
        for clip in progress(todo, "draw clips"):
            write(clip)
        return
    with worker_pool(min(workers, len(todo))) as pool:
        for _ in progress(pool.map(write, todo, chunksize=8), "draw clips", total=len(todo)):
            pass


def _write_annotations(clips: Sequence[ClipSpec], splits: Sequence[str], out: Path) -> None:
    """Write the csv of every split, `MSRVTT_data.json`, `relevance.json`, the judgements of every gallery (SPLIT.qrels,
    distill/demo/truth.py) and the licence of the pictures.

    In `relevance.json`, "captions" maps video id -> sentence id -> 0 or 1 per second, and "content" maps video id ->
    the seconds that show an emoji.
    """
    videos, sentences = [], []
    captions: dict[str, dict[str, list[int]]] = {}
    for clip in clips:
        videos.append({"video_id": clip.video, "id": clip.number, "split": clip.split})
        captions[clip.video] = {}
        for sentence in clip.sentences:
            captions[clip.video][str(len(sentences))] = clip.relevance(sentence)
            sentences.append({"video_id": clip.video, "sen_id": len(sentences), "caption": sentence.text})
    relevance = {"captions": captions, "content": {clip.video: clip.content() for clip in clips}}
    write_json(out / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    publish(out / "relevance.json", canonical_json(relevance))
    publish(out / "LICENSE-twemoji.txt", ATTRIBUTION.encode())
    if MORE not in splits:
        (out / f"{MORE}.csv").unlink(missing_ok=True)
    before = 0
    for split in splits:
        own = [clip for clip in clips if clip.split == split]
        if split not in ("train", MORE):
            publish(out / f"{split}.qrels", "".join(f"{line}\n" for line in judgements(own, before)).encode())
        before += sum(len(clip.sentences) for clip in own)
    for split in splits:
        lines = ["video_id", *(clip.video for clip in clips if clip.split == split)]
        publish(out / f"{split}.csv", "".join(f"{line}\n" for line in lines).encode())
