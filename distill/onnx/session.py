"""The text side of an exported release, without torch: queries to the vectors that search its galleries.

Texts become ids with the release's own tokenizer, and ids become vectors in ONNX Runtime, which is imported here and in
`distill/exporting`. Only `config.json`, the tokens, the two manifests and the graph are read and
verified, so a copy of the release without its weights answers queries too.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field

from distill.data.bpe import read_bpe
from distill.data.jsontokens import FILE, JsonTokenizer, Spelling, read_content
from distill.data.tokens import TextTokenizer, Tokenizer
from distill.errors import ArtefactError, ExpectedError, check_installed
from distill.manifest import Manifest, check_files, read_manifest
from distill.onnx.exported import AGAIN, FOLDER, MERGES, file_of, read_export
from distill.records import View, read_json

RELEASES = (1, 2)  # formats of releases whose text settings are read here
CONFIG = "config.json"
BATCH = 64  # texts encoded at once
LONGEST = 2**12  # words; more than any text tower reads
LARGEST = 2**31  # bytes of a graph: one protobuf message
MEMORY = 2**32  # bytes for the weights of graphs and what they compute: a damaged one may ask for any number
AS_ASKED = 1  # how ONNX Runtime's arena grows: by what is asked for, not by doubling


class _Text(View):
    max_words: Annotated[int, Field(ge=3, le=LONGEST)]
    vocabulary: list[int] | None = None


class _TextTower(View):
    vocab_size: int = 49408  # open_clip's default


class _Architecture(View):
    text_cfg: _TextTower
    tokenizer: Spelling | None = None


class _Config(View):
    """The part of a release's `config.json` about its texts."""

    text: _Text
    architecture: _Architecture


class TextSession:
    """The text side of a release, opened; calls may come from several threads at once."""

    def __init__(self, path: Path, id: str, dim: int, tokenizer: TextTokenizer, session: Any):
        self.path, self.id, self.dim = path, id, dim  # of the release; the numbers of a vector
        self.tokenizer = tokenizer
        self._session = session
        self._spelling = threading.Lock()  # `tokenizers` refuses a call while it is in another one

    @classmethod
    def open(cls, release: Path, int8: bool = False) -> "TextSession":
        """Open the graph of a release that was exported with `--to onnx`; `int8`: the smaller one.

        Raises `ArtefactError` for a damaged folder, one of another release, and one without graphs.
        """
        if not (release / FOLDER).is_dir() and release.is_dir():
            raise ArtefactError(f"{release}: holds no folder {FOLDER}; run `distill export {release} --to onnx`")
        manifest, name = read_manifest(release, "release", *RELEASES), file_of("text", int8)
        read_export(release, manifest.id, [name])
        tokenizer = _tokenizer(release, manifest)
        session = open_graph(release / FOLDER / name, bounded=True)
        inputs = {node.name: node.shape[1:] for node in session.get_inputs()}
        dim = next((node.shape[1] for node in session.get_outputs() if node.name == "vector"), None)
        if inputs != {"ids": [tokenizer.max_words]} or type(dim) is not int:
            raise ArtefactError(f"{release / FOLDER / name}: not the text side of this release; {AGAIN}")
        return cls(release, manifest.id, dim, tokenizer, session)

    def vectors(self, queries: Sequence[str]) -> Float32[np.ndarray, "query dim"]:
        """Return the vectors whose inner products with a gallery's vectors rank it or choose its candidates.

        They have length 1, but for EERCF's. What `max_words` tokens, start and end included, do not hold is not read.
        """
        if not queries:
            raise ExpectedError("no texts to encode; give at least one")
        with self._spelling:
            ids = self.tokenizer(queries)
        return np.concatenate([self._run(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)])

    def _run(self, ids: Int64[np.ndarray, "query word"]) -> Float32[np.ndarray, "query dim"]:
        where = self.path / FOLDER
        (found,) = run_graph(self._session, ["vector"], {"ids": ids}, where)
        if found.shape != (len(ids), self.dim) or found.dtype != np.float32:
            raise ArtefactError(f"{where}: gives {found.dtype} {list(found.shape)} for {len(ids)} texts; {AGAIN}")
        if not np.isfinite(found).all():
            raise ArtefactError(f"{where}: gives a vector that is not finite; {AGAIN}")
        return found


def open_graph(path: Path, threads: int = 0, *, bounded: bool = False) -> Any:
    """Open one graph on the CPU; `threads`: of one call, 0 for as many as there are cores.

    The bytes are given, not the path, so that a graph cannot name other files to be read. A `bounded` one, which others
    made, may take `MEMORY` and no more.
    """
    check_installed("onnxruntime")
    import onnxruntime

    if path.stat().st_size > LARGEST:
        raise ArtefactError(f"{path}: {path.stat().st_size:,} bytes, a graph has at most {LARGEST:,}; {AGAIN}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if bounded and _bound():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other class
        raise ArtefactError(f"{path}: not a graph that can be run ({error}); {AGAIN}") from None


def run_graph(graph: Any, outputs: Sequence[str], inputs: Mapping[str, np.ndarray], where: Path) -> list[np.ndarray]:
    """Return the outputs of these names; raise `ArtefactError` for a graph that does not run on these inputs."""
    try:
        return graph.run(list(outputs), dict(inputs))
    except Exception as error:  # ONNX Runtime's errors share no other class
        raise ArtefactError(f"{where}: the graph does not run ({error}); {AGAIN}") from None


@functools.cache
def _bound() -> bool:
    """Share one allocator of `MEMORY` bytes among this process's bounded graphs; False if there is another already."""
    import onnxruntime

    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    room = onnxruntime.OrtArenaCfg({"max_mem": MEMORY, "arena_extend_strategy": AS_ASKED})
    try:
        onnxruntime.create_and_register_allocator(where, room)
    except Exception:  # of the program that we are a part of
        return False
    return True


def _tokenizer(release: Path, manifest: Manifest) -> TextTokenizer:
    named = [name for name in (CONFIG, FILE) if name in manifest.files]
    if CONFIG not in named:
        raise ArtefactError(f"{release}: the manifest lists no {CONFIG}; release again")
    check_files(release, manifest, verify=True, but={name for name in manifest.files if name not in named})
    config = read_json(release / CONFIG, _Config, "release again with this version")
    text, architecture = config.text, config.architecture
    if architecture.tokenizer is None:
        read_export(release, manifest.id, [MERGES])
        return Tokenizer(text.max_words, text.vocabulary, read_bpe(release / FOLDER / MERGES))
    where, rows = str(release / FILE), architecture.text_cfg.vocab_size
    return JsonTokenizer(text.max_words, read_content(release), architecture.tokenizer, where, rows)
