"""A release with its weights as the backend of a gallery (distill/retrieval/backend.py), by PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from distill.model.features import VideoFeatures
from distill.model.second_look import second_look as look_again
from distill.ranking.executor import of_part, of_parts, of_texts
from distill.ranking.two_stage import Parts, best_of
from distill.retrieval.backend import Asked
from distill.retrieval.encoder import Encoder
from distill.retrieval.finding import CANDIDATES, Rerank
from distill.retrieval.products import Products
from distill.retrieval.table import Table
from distill.retrieval.table_features import TableTokens, table_frames
from distill.retrieval.vectors import Answer, Searched, Vectors


class ModelBackend:
    """Encodes queries and files, and scores tokens and frames."""

    reads_videos = True

    def __init__(self, release: Encoder):
        self.release, self.model = release, release.model
        self.path, self.id = release.path, release.manifest.id
        self._device = next(release.model.parameters(), torch.empty(0)).device

    def check(self, table: Table) -> None:
        """Take any gallery."""

    def searched(self, vectors: Vectors) -> Searched:
        """Return the vectors as PyTorch searches them."""
        return Products(vectors)

    @torch.inference_mode()
    def asked(self, queries: Sequence[str]) -> Asked:
        """Encode queries; `text` are their features."""
        text = self.release.encode_text(queries)
        return Asked(self.model.query_vectors(text).cpu().numpy(), text)

    def no_second_look(self, table: Table) -> str:
        """Return why no second look can be taken: the release has none, or the gallery no frames."""
        if self.release.second_look is None:
            return f"{self.path} carries none; train it again with this version"
        if not table.has_frames:
            return f"{table.path} stores no frames; index again with tools/index.py --frames int8"
        return ""

    def rerank(self, table: Table, asked: Asked, *, exact: bool, second_look: bool) -> Rerank | None:
        """Return the second stage by the full score, in parts unless `exact`, or by a second look."""
        parts = self._parts(table, asked, exact, second_look)
        if parts is None:
            return None

        @torch.inference_mode()
        def rerank(rows: Int64[np.ndarray, "query candidate"], k: int) -> Answer:
            scores, found = best_of(parts, torch.from_numpy(rows), k)
            return scores.numpy(), found.numpy()

        return rerank

    def _parts(self, table: Table, asked: Asked, exact: bool, second_look: bool) -> Parts | None:
        model, look, text = self.model, self.release.second_look, asked.text
        if second_look:
            frames = table_frames(table, self._device)
            assert look is not None and frames is not None, "checked before"
            return [(of_part(look_again(look.temperature, look.t2v), text, frames), 1)]
        if not table.config.tokens:
            return None
        if exact:
            return [(of_texts(model.similarity, text, self._tokens(table, model.rerank_fields)), 1)]
        return of_parts(model, text, lambda fields: self._tokens(table, fields))

    def _tokens(self, table: Table, fields: tuple[str, ...]) -> TableTokens:
        return TableTokens(table, fields, self._device)

    @torch.inference_mode()
    def rerank_captions(
        self, table: Table, asking: Any, own: Sequence[int], found: Int64[np.ndarray, "1 candidate"], k: int
    ) -> Answer:
        """Return the best `k` captions by the full score; their texts are encoded again, because none are stored."""
        features = self._tokens(table, self.model.rerank_fields)[torch.tensor(own[:1])] if asking is None else asking

        def pairs(videos: Tensor, captions: Tensor) -> Tensor:
            said = [table.caption(number)[0]["text"] for number in captions.tolist()]
            some = (said[start : start + CANDIDATES] for start in range(0, len(said), CANDIDATES))
            scores = [self.model.similarity(self.release.encode_text(text), features[videos]) for text in some]
            return torch.cat(scores).T

        scores, best = best_of([(pairs, 1)], torch.from_numpy(found), k)
        return scores.numpy(), best.numpy()

    def weighs(self, table: Table) -> bool:
        """Return whether frames are stored."""
        return table.has_frames

    @torch.inference_mode()
    def weights(
        self, table: Table, asked: Asked, query: int, rows: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, "k frame"] | None:
        """Return the softmax of the model's relevance over the real frames; None where no frames are stored."""
        stored = table_frames(table, self._device)
        if stored is None or not len(rows):
            return None
        video = stored[torch.from_numpy(rows)]
        assert video.real is not None, "frames are stored with what is padding"
        text = asked.text[query : query + 1]
        scores = self.model.relevance(text[torch.zeros(len(rows), dtype=torch.int64)], video)
        return scores.masked_fill(~video.real, -torch.inf).softmax(-1).cpu().numpy()

    @torch.inference_mode()
    def video(self, video: Any) -> tuple[VideoFeatures, Float32[np.ndarray, "1 dim"]]:
        """Return the features of a file, or of features themselves, and the vector that they are searched by."""
        features = self.release.encode_video(video) if isinstance(video, Path) else video
        return features, self.model.index_vectors(features).cpu().numpy()
