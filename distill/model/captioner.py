"""An auxiliary captioner: while a video tower is trained, a small decoder has to say the captions from its frames.

It reads frame features [pair, frame, dim] and the caption up to each word, and predicts the next word. The tower keeps
what it has learned from it when the captioner is left out of the release; which frames it reads for which word is
text-to-frame relevance that no search has to compute (Prompt Switch, Auxiliary Video Captioning).
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from distill.config import Config
from distill.data.tokens import Tokenizer, read_vocabulary
from distill.errors import RecipeError
from distill.model.clip import TextTower
from distill.model.decoder import DecoderLayer
from distill.model.similarity import precise

LIGHT_WORDS = "in on of to about this that a an the and there here is are . , <end_of_text> <start_of_text>"
UNKNOWN = 1  # of a pruned token table: the row of every token that was not kept


class CaptionConfig(Config):
    """Size of the captioner, its weight, and the words that say little: they count `light_weight`, all others 1."""

    weight: float = Field(default=0.5, ge=0)  # of the captioning loss
    layers: int = Field(default=2, ge=1)  # decoder blocks
    heads: int = Field(default=8, ge=1)  # attention heads
    feed_forward: int | None = Field(default=None, ge=1)  # None: four times the size of the features
    light_words: list[str] = Field(default=list[str](LIGHT_WORDS.split()))  # words that say little
    light_weight: float = Field(default=0.25, gt=0)  # of a light word; others weigh 1


class Captioner(nn.Module):
    """A post-norm decoder over word embeddings that reads frames, with a head over the vocabulary.

    The head starts as the token table of the text tower, whose embeddings come in; both ways are the authors'.
    """

    word_weights: Tensor

    def __init__(self, text: TextTower, dim: int, config: CaptionConfig, towers: Path):
        super().__init__()
        table = text.get_parameter("token_embedding.weight").detach()
        if text.width != dim or dim % config.heads:
            raise RecipeError(
                f"model.captions: {config.heads} heads on word embeddings of size {text.width} and frame features of "
                f"size {dim}; both sizes must be equal, and a multiple of heads. Use other towers, or captions=null"
            )
        self.norm_in = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, config.heads, config.feed_forward or 4 * dim) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, len(table))
        self.head.weight = nn.Parameter(table.clone())
        nn.init.zeros_(self.head.bias)
        weights = torch.ones(len(table))
        weights[light_tokens(config.light_words, len(table), towers)] = config.light_weight
        self.register_buffer("word_weights", weights, persistent=False)

    def forward(
        self,
        words: Float[Tensor, "pair word dim"],
        frames: Float[Tensor, "pair frame dim"],
        said: Bool[Tensor, "pair word"],
        counted: Bool[Tensor, "pair frame"] | None = None,
    ) -> tuple[Float[Tensor, "token vocabulary"], Float[Tensor, "pair word frame"]]:
        """Return the logits of the word that follows each `said` one, those of all pairs in one list, and the last
        layer's attention. `counted` are the frames that may be read (None: all)."""
        num_words = words.shape[1]
        before = torch.ones(1, num_words, num_words, dtype=torch.bool, device=words.device).tril()
        readable = None if counted is None else counted.unsqueeze(1)
        states = self.norm_in(words)
        attention = states.new_empty(0)
        for layer in self.layers:
            states, attention = layer(states, frames, before, readable)
        return self.head(self.norm_out(states)[said]), attention

    def counts(self, targets: Int[Tensor, "pair word"], said: Bool[Tensor, "pair word"]) -> Float[Tensor, "pair word"]:
        """Return the weight of every word, 0 where none is said; in float32 or better."""
        return precise(self.word_weights)[targets] * said


def next_words(
    ids: Int[Tensor, "text word"],
) -> tuple[Int[Tensor, "text said"], Int[Tensor, "text said"], Bool[Tensor, "text said"]]:
    """Split captions into the tokens that are heard, those to be said next, and where these are a word or the end.

    Nothing is said after the end token (the largest id), whatever a caption is padded with.
    """
    places = torch.arange(ids.shape[1] - 1, device=ids.device)
    return ids[:, :-1], ids[:, 1:], places < ids.argmax(-1, keepdim=True)


def frames_read(
    attention: Float[Tensor, "pair word frame"], counts: Float[Tensor, "pair word"]
) -> Float[Tensor, "pair frame"]:
    """Average attention over the words that count, each as much as it counts; every row sums to 1."""
    return torch.einsum("pw,pwf->pf", counts, attention.to(counts.dtype)) / counts.sum(1, keepdim=True)


def light_tokens(words: list[str], size: int, towers: Path) -> list[int]:
    """Return the ids of the tokens that spell `words`, in the token table of the folder `towers` or else in CLIP's
    own; words that a pruned table has not kept have none."""
    if not words:
        return []
    vocabulary = read_vocabulary(towers)
    longest = max(len(word.encode()) for word in words)  # a token spells a byte or more, so that no word is cut
    tokenizer = Tokenizer(2 + longest, vocabulary)
    if tokenizer.end + 1 != size:
        raise RecipeError(
            f"model.captions.light_words: the tokenizer has {tokenizer.end + 1} tokens, the towers' table {size}; "
            f"words have no place there, so say light_words: []"
        )
    spelled = {int(token) for row in tokenizer(words) for token in row[1 : np.count_nonzero(row) - 1]}
    return sorted(spelled if vocabulary is None else spelled - {UNKNOWN})
