"""The generator of pseudo-queries: a text transformer that reads a video instead of words (PIG, section 3 of its code).

It begins as a copy of CLIP's text tower. Tokens of a video [video, token, dim] stand where words would, between a start
and an end token, and what the end token has read is the sentence that a user might ask for. Which patches it is shown
the attention of the video's class token decides (`informativeness`).
"""

import copy
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from distill.config import Config
from distill.errors import RecipeError
from distill.model.clip import TextTower
from distill.model.pooling import LEFT_OUT


class GeneratorConfig(Config):
    """Choices of the generator. The defaults are those of PIG's release; its authors' earlier release (F-PIG) has
    `projection: text`, `ends: learned`, and with ViT-B/32 no start token."""

    weight: float = Field(default=1.0, ge=0)  # of the loss that draws a pseudo-query to its caption's sentence
    selected: int = Field(default=16, ge=1)  # patches that are shown, of all frames together
    projection: Literal["none", "text"] = "none"  # behind the last norm: none, or a copy of CLIP's text projection
    ends: Literal["constant", "learned"] = "constant"  # start and end token: CLIP's own, or trained from them
    start: bool = True  # whether there is a start token


class QueryGenerator(nn.Module):
    """The mapper from features to words, the transformer, and what it begins and ends with.

    `ends` are the last rows of CLIP's token table, start and end. Constant ones are parameters that are not trained, so
    that a release has them: the table that they come from may be trained.
    """

    causal_mask: Tensor

    def __init__(self, text: TextTower, dim: int, config: GeneratorConfig):
        super().__init__()
        if config.projection == "none" and text.width != dim:
            raise RecipeError(
                f"model.generator.projection: none makes pseudo-queries of the text tower's width {text.width}, but "
                f"sentences have {dim} numbers; say projection: text"
            )
        words = text.get_parameter("token_embedding.weight").detach()
        self.mapper = nn.Linear(dim, text.width)
        ends = words[-2:] if config.start else words[-1:]
        self.ends = nn.Parameter(ends.clone(), requires_grad=config.ends == "learned")
        self.positions = nn.Parameter(text.positional_embedding.detach().clone())
        self.transformer = copy.deepcopy(text.transformer).requires_grad_(True)
        self.ln_final = copy.deepcopy(text.ln_final).requires_grad_(True)
        self.projection = None
        if config.projection == "text":
            self.projection = nn.Parameter(text.text_projection.detach().clone())
        self.heads = text.heads
        self.register_buffer("causal_mask", text.causal_mask.clone(), persistent=False)

    def forward(
        self, tokens: Float[Tensor, "video token dim"], counted: Bool[Tensor, "video token"] | None = None
    ) -> Float[Tensor, "video sentence"]:
        """Return the state of the end token, not normalised; `counted` are the tokens that may be read (None: all), the
        first among them, so that there is always one to read."""
        words = self.mapper(tokens)
        before, end = self.ends[:-1].expand(words.shape[0], -1, -1), self.ends[-1:].expand(words.shape[0], -1, -1)
        words = torch.cat([before, words, end], dim=1)
        num_words = self.check_room(tokens.shape[1])
        words = words + self.positions[:num_words]
        mask = self.causal_mask[:num_words, :num_words]
        if counted is not None:
            hidden = ~nn.functional.pad(counted, (len(self.ends) - 1, 1), value=True)
            mask = mask.masked_fill(hidden.unsqueeze(1), -torch.inf)
            mask = mask.repeat_interleave(self.heads, dim=0)
        for block in self.transformer.resblocks:
            words = block(words, attn_mask=mask)
        state = self.ln_final(words[:, -1])
        return state if self.projection is None else state @ self.projection

    def check_room(self, num_tokens: int) -> int:
        """Return the length of what is read for so many tokens; raise `RecipeError` if there are too few positions."""
        num_words, places = num_tokens + len(self.ends), len(self.positions)
        if num_words > places:
            raise RecipeError(
                f"model.generator.selected: the generator reads {num_words} tokens of a video, its ends included, but "
                f"CLIP's text tower has {places} positions; select {num_words - places} fewer, or take fewer frames"
            )
        return num_words


def informativeness(
    attention: Float[Tensor, "video head token"],
    global_tokens: int,
    per_frame: int,
    counted: Bool[Tensor, "video frame"] | None = None,
) -> Float[Tensor, "video token"]:
    """Return how much each patch says of its video: the class token's attention in the last block, the largest over
    heads. Global tokens, frame tokens and patches of frames that do not count have -inf, so they are never chosen."""
    scores = attention.amax(1)
    patch = torch.ones_like(scores, dtype=torch.bool)
    patch[:, :global_tokens] = patch[:, global_tokens::per_frame] = False
    if counted is not None:
        patch[:, global_tokens:] &= counted.repeat_interleave(per_frame, dim=1)
    return scores.masked_fill(~patch, -torch.inf)


def most_informative(
    tokens: Float[Tensor, "video token dim"], scores: Float[Tensor, "video token"], count: int
) -> tuple[Float[Tensor, "video chosen dim"], Bool[Tensor, "video chosen"]]:
    """Return the `count` best tokens of every video, the best first, and which of them are more than filling.

    Their order matters: the generator adds positions to them. The choice itself has no gradient.
    """
    best = scores.topk(count, dim=1)
    chosen = tokens.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return chosen, best.values > LEFT_OUT
