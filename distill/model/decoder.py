"""A transformer decoder that shows what it reads: queries attend to one another, then to a memory.

Queries [batch, query, dim] and a memory [batch, key, dim] go in; queries that have read come out, and the share of its
attention that each gave to every key. Numbers and parameter names are those of torch's `nn.TransformerDecoder` with its
defaults (norms after the residuals, ReLU), which keeps its attention to itself.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN = -1e18  # the score of keys that must not be seen; finite, so that a query that sees none gives numbers too


class Attention(nn.Module):
    """Multi-head attention and its weights averaged over heads, before dropout; parameters as in torch's own."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        assert dim % heads == 0, f"{heads} heads do not divide {dim}"
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)
        self.num_heads, self.dropout = heads, dropout

    def forward(
        self,
        queries: Float[Tensor, "batch query dim"],
        memory: Float[Tensor, "batch key dim"],
        visible: Bool[Tensor, "#batch #query key"] | None = None,
    ) -> tuple[Float[Tensor, "batch query dim"], Float[Tensor, "batch query key"]]:
        """Return what each query reads, and its weights; `visible` says which keys it may look at (None: all)."""
        w_query, w_key, w_value = self.in_proj_weight.chunk(3)
        b_query, b_key, b_value = self.in_proj_bias.chunk(3)
        query = self._heads(F.linear(queries, w_query, b_query))
        key, value = self._heads(F.linear(memory, w_key, b_key)), self._heads(F.linear(memory, w_value, b_value))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # batch head query key
        if visible is not None:
            scores = scores.masked_fill(~visible.unsqueeze(1), HIDDEN)
        weights = scores.softmax(-1)
        kept = F.dropout(weights, self.dropout, self.training).to(value.dtype)
        read = (kept @ value).transpose(1, 2).flatten(2)
        return self.out_proj(read), weights.mean(1)

    def _heads(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch head token channel"]:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the memory, two linear layers, each residual followed by its norm."""

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float = 0.0):
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.multihead_attn = Attention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feed_forward), nn.Linear(feed_forward, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "batch query dim"],
        memory: Float[Tensor, "batch key dim"],
        seen: Bool[Tensor, "#batch #query query"] | None = None,
        readable: Bool[Tensor, "#batch #query key"] | None = None,
    ) -> tuple[Float[Tensor, "batch query dim"], Float[Tensor, "batch query key"]]:
        """Apply the layer; a query may look at the queries `seen` and at `readable` keys of the memory (None: all)."""
        queries = self.norm1(queries + self.dropout(self.self_attn(queries, queries, seen)[0]))
        read, attention = self.multihead_attn(queries, memory, readable)
        queries = self.norm2(queries + self.dropout(read))
        hidden = self.dropout(self.linear1(queries).relu())
        return self.norm3(queries + self.dropout(self.linear2(hidden))), attention
