"""The conversion of an authors' checkpoint into a release, or into a folder of CLIP towers.

Every tensor of the file is converted, named as unused with a reason, or refused; every tensor of the model comes from
the file. Nothing is filled in.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from distill import __version__
from distill.catalogue import INTERACTIONS, build, parse_model_config
from distill.conversion.authors import Checkpoint, read_tensors
from distill.conversion.geometry import activation_of, architecture_of
from distill.conversion.heads import HEADS, Head, head_of
from distill.conversion.options import WORDS, Options
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.manifest import NAME, file_sha256
from distill.model.towers import WEIGHTS_FILE, Towers
from distill.publishing import published_folder
from distill.records import write_json
from distill.release.export import write_towers
from distill.release.release import PROVENANCE
from distill.release.writing import write_release


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of a conversion; `record` is the part that the release's provenance keeps."""

    out: Path
    record: dict[str, Any]
    architecture: dict[str, Any]  # of the towers
    head: Head | None  # None: towers alone

    def report(self) -> str:
        """Return what became of every tensor, the sizes, the notes and the next commands, as text."""
        counts, reasons = self.record["tensors"], {}
        for name, why in self.record["unused"].items():
            reasons.setdefault(why, []).append(name)
        lines = [
            f"{self.out}: {self.record['kind']}, {counts['converted']} tensors converted, {counts['unused']} unused"
        ]
        lines += [f"  unused, {why}: {first_few(names)}" for why, names in reasons.items()]
        lines += [f"  {part}: {sizes}" for part, sizes in self._geometry().items()]
        lines += [f"  activation: QuickGELU ({self.record['quickgelu']})"]
        lines += [f"  note: {note}" for note in self.record["notes"]]
        return "\n".join([*lines, "next:", *(f"  {command}" for command in self._next())])

    def _geometry(self) -> dict[str, str]:
        parts = {"vision": self.architecture["vision_cfg"], "text": self.architecture["text_cfg"]}
        parts["features"] = {"size": self.architecture["embed_dim"]}
        if self.head is not None:
            model = {**self.head.config, "words": self.head.words, "frames": self.head.frames}
            parts |= {"temporal": model.pop("temporal", {}), "queries": model.pop("queries", {}), "model": model}
        named = {
            part: [f"{key} {size}" for key, size in sizes.items() if size is not None] for part, sizes in parts.items()
        }
        return {part: ", ".join(sizes) for part, sizes in named.items() if sizes}

    def _next(self) -> list[str]:
        if self.head is None:
            return [f"python distill/run.py RECIPE model.clip.model={self.out} model.clip.weights=folder"]
        size = self.architecture["vision_cfg"]["image_size"]
        pack = f"python tools/pack_frames.py CAPTIONS VIDEOS --out FRAMES --size {size} --frames {self.head.frames}"
        pack += f" --sampler {self.head.sampler}" if self.head.sampler != "clip4clip" else ""
        pack += f" --prompts {self.head.prompts}" if self.head.prompts else ""
        if self.record["kind"] in INTERACTIONS:
            return [pack, f"python tools/dump_soft_labels.py {self.out} FRAMES --out LABELS"]
        return [pack, f"python tools/index.py {self.out} FRAMES --out GALLERY --videos VIDEOS"]


def convert(source: Path, kind: str, out: Path, options: Options) -> Conversion:
    """Convert the authors' checkpoint `source` into the folder `out`.

    Raises an `ExpectedError` where a tensor is missing, unknown, of another shape or not finite, where the options do
    not fit, and where `out` holds something else. `out` is then left as it was.
    """
    options.check(kind)
    _check_out(out, NAME if kind in HEADS else WEIGHTS_FILE)
    checkpoint = Checkpoint(source, kind, read_tensors(source, kind, options.ema))
    checkpoint.check_kind()  # first: another kind would only look like missing tensors
    architecture = architecture_of(checkpoint)
    head = head_of(checkpoint, options, architecture)
    unused, sha256 = checkpoint.unused(), file_sha256(source)
    record = {
        "file": source.name,
        "sha256": sha256,
        "kind": kind,
        "tensors": {"converted": len(checkpoint.tensors) - len(unused), "unused": len(unused)},
        "unused": unused,
        "quickgelu": activation_of(checkpoint, architecture, sha256, bool(options.quickgelu)),
        "notes": [*head.notes, *_vocabulary_note(architecture)] if head else [],
    }
    provenance = {
        "name": f"{kind} from {source.name}",
        "converted": record,
        "measured": "nothing: the weights were converted, not evaluated",
        "versions": {"distill": __version__},
    }
    if head is None:
        _write_towers(checkpoint, architecture, out, provenance)
    else:
        _write_model(checkpoint, architecture, head, out, provenance)
    return Conversion(out=out, record=record, architecture=architecture, head=head)


def _check_out(out: Path, mark: str) -> None:
    """Refuse a folder that holds other files; `mark` is the file that a conversion would have left in it."""
    if out.exists() and not out.is_dir():
        raise ExpectedError(f"{out}: a file; --out names a folder to make")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).is_file():
        raise ExpectedError(f"{out}: holds other files (no {mark}); delete it or choose another folder")


def _collect(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors of the model, in float32; raise one error that lists all problems."""
    wanted = {ours: checkpoint.theirs(ours) for ours in expected}
    used = {name for names in wanted.values() for name in names}
    held = checkpoint.tensors.keys()
    problems = {"missing": sorted(used - held), "unknown": sorted(held - used - checkpoint.unused().keys())}
    if not any(problems.values()):  # tensors can be compared only if all are there
        weights = {ours: checkpoint.tensor(ours) for ours in expected}
        problems["of another shape"] = [
            f"{', '.join(wanted[ours])} {list(tensor.shape)} for {list(expected[ours].shape)}"
            for ours, tensor in weights.items()
            if tensor.shape != expected[ours].shape
        ]
        problems["not finite"] = [wanted[ours][0] for ours, tensor in weights.items() if not tensor.isfinite().all()]
        if not any(problems.values()):
            return weights
    reasons = "; ".join(f"{what}: {first_few(names)}" for what, names in problems.items() if names)
    raise ArtefactError(
        f"{checkpoint.path}: not a {checkpoint.kind} checkpoint as its authors save it: {reasons}; nothing is "
        f"dropped or filled in, so it is not converted"
    )


def _write_model(
    checkpoint: Checkpoint, architecture: dict[str, Any], head: Head, out: Path, provenance: dict[str, Any]
) -> None:
    # A release brings its own weights, so these two fields only record where they come from.
    clip = {"model": checkpoint.path.stem, "weights": "folder"}
    config = parse_model_config({**head.config, "clip": clip}, str(checkpoint.path))
    with torch.random.fork_rng(devices=[]):  # building draws random weights, all of which are replaced
        model = build(config, Towers.from_architecture(architecture))
    write_release(
        out,
        model=model,
        model_config=config,
        weights=_collect(checkpoint, model.state_dict()),
        text={"max_words": head.words, "vocabulary": None},
        frames_config={
            "sampler": {"kind": head.sampler, "num_frames": head.frames}
            | ({"prompts": head.prompts} if head.prompts else {}),
            "size": architecture["vision_cfg"]["image_size"],
        },
        provenance=provenance,
    )


def _write_towers(checkpoint: Checkpoint, architecture: dict[str, Any], out: Path, provenance: dict[str, Any]) -> None:
    """Publish the folder of towers with one rename; keep equal towers that stand there and refuse others."""
    with torch.random.fork_rng(devices=[]):
        towers = open_clip.CLIP(**architecture, nonscalar_logit_scale=True)
    weights = _collect(checkpoint, towers.state_dict())
    with published_folder(out) as part:
        write_towers(part, architecture, weights, {"format": f"retrieval-distill {__version__}"})
        write_json(part / PROVENANCE, provenance)
        if out.is_dir() and any(out.iterdir()):
            if _towers_sha256(out) != _towers_sha256(part):
                raise ArtefactError(f"{out}: already holds other towers; delete it or choose another folder")
            shutil.rmtree(part)


def _towers_sha256(folder: Path) -> dict[str, str]:
    """Return the hashes of all files but the provenance: even an unknown file may be a vocabulary, which counts."""
    others = (path for path in folder.iterdir() if path.name != PROVENANCE)
    return {path.name: file_sha256(path) if path.is_file() else "a folder" for path in others}


def _vocabulary_note(architecture: dict[str, Any]) -> list[str]:
    rows, tokens = architecture["text_cfg"]["vocab_size"], Tokenizer(WORDS).end + 1
    if rows == tokens:
        return []
    return [f"the token table has {rows} rows, CLIP's tokenizer has {tokens} tokens: this model takes ids, not text"]
