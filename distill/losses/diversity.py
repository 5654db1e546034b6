"""Intra-diversity: the concepts of one side must not become alike (GLSCL, IDL; `Inter_Diversity` in its code)."""

import torch
from jaxtyping import Float
from torch import Tensor

MARGIN = 0.1


def diversity(concepts: Float[Tensor, "pair concept dim"]) -> Float[Tensor, ""]:
    """Return the hinge on the batch mean of the cosines between a sample's concepts, which are unit vectors (IDL).

    Every concept must be nearer to itself than to any other by the margin, seen from either of the two. The authors
    apply it to videos only: they compute the same of the texts and drop it.
    """
    assert concepts.dtype.itemsize >= 4, "losses are computed in float32 or better"
    similarity = torch.einsum("pqd,prd->qr", concepts, concepts) / len(concepts)
    return margin_ranking(similarity) + margin_ranking(similarity.T)


def margin_ranking(similarity: Float[Tensor, "concept concept"]) -> Float[Tensor, ""]:
    """Return the mean over i != j of max(0, margin + S_ij - S_ii)."""
    count = len(similarity)
    excess = (MARGIN + similarity - similarity.diagonal().unsqueeze(1)).relu()
    return (excess.sum() - excess.diagonal().sum()) / (count * (count - 1))
