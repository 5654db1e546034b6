"""The exact search of stored vectors by PyTorch, as distill/retrieval/vectors.py has it by numpy."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from distill.ranking.topk import best, top_k
from distill.retrieval.stored import tensors
from distill.retrieval.vectors import BLOCK, GATHERED, Answer, Vectors


class Products:
    """The vectors of one segment, searched by PyTorch on all cores."""

    def __init__(self, vectors: Vectors):
        self.columns = tensors(vectors.columns)
        self.stored = self.columns["vectors"]

    def __len__(self) -> int:
        return len(self.stored)

    def top(
        self, queries: Float32[np.ndarray, "query dim"], k: int, rows: Int64[np.ndarray, " row"] | None = None
    ) -> Answer:
        """Return the `k` best rows, or the best of some, as `vectors.Searched` says."""
        asking = torch.from_numpy(queries)
        if rows is not None:
            scores, found = self._top_of(asking, torch.from_numpy(rows), k)
        elif self.stored.dtype == torch.float32:
            scores, found = top_k(asking, self.stored, k)
        else:
            scores, found = best([(start, top_k(asking, block, k)) for start, block in self._blocks()], k)
        return scores.numpy(), found.numpy()

    def _blocks(self) -> Iterator[tuple[int, Float[Tensor, "row dim"]]]:
        floats = torch.empty(min(BLOCK, len(self)), self.stored.shape[1])
        for start in range(0, len(self), BLOCK):
            stored = self.stored[start : start + BLOCK]
            block = floats[: len(stored)].copy_(stored)  # one buffer for all blocks: allocating new ones took longer
            if "scales" in self.columns:
                block *= self.columns["scales"][start : start + BLOCK, None]
            yield start, block

    def _top_of(
        self, asking: Float[Tensor, "query dim"], rows: Int64[Tensor, " row"], k: int
    ) -> tuple[Float[Tensor, "query _"], Int64[Tensor, "query _"]]:
        found = asking.new_empty(len(asking), 0), rows.new_empty(len(asking), 0)
        for some in rows.split(GATHERED):
            block = self.stored.index_select(0, some).float()  # reads no others, in less time than indexing takes
            if "scales" in self.columns:
                block *= self.columns["scales"][some, None]
            scores, places = top_k(asking, block, k)
            found = best([(0, found), (0, (scores, some[places]))], k)
        return found
