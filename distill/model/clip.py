"""CLIP's two towers and its logit scale, built from open_clip's own layers; other towers stand behind the same calls.

Pixels or stem tokens go in at `VisionTower`, token ids at `TextTower`; both give features of size `dim` that are not
normalised. Decisions:

* A tower reads its parameters only inside `forward`, so each tower must be *called*; methods that look like a second
  entrance (`stem`) go through the call. (Under ZeRO-3 a parameter exists only there.)
* Frozen layers before the first trained block are the *stem*. It never changes, so callers may compute its tokens
  once, store them, and pass those in place of pixels.
* The projected class token is all that most models use, so the last trained block computes only that one query,
  unless the model asks for every token or sends prompts through the tower (`Wiring`).
* Padded frames are images of zeros *after* normalisation (mid-grey), as CLIP4Clip's loaders produce them.
"""

from functools import partial

import open_clip
import torch
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from distill.errors import RecipeError
from distill.model.adapter import AnyTextTower, AnyVisionTower, real_words
from distill.model.architecture import spelling_of
from distill.model.attention import ClassTokenAttention, TokenAttention, shift_tokens
from distill.model.logit_scale import LogitScale
from distill.model.preprocessing import OPENAI, Preprocessing, preprocessing_of
from distill.model.prompts import PromptAggregation, switch_prompts
from distill.model.proxies import Proxies, ProxyAttention, left_out, video_tokens
from distill.model.towers import Towers
from distill.model.wiring import PLAIN, Wiring, check_wiring

Images = UInt8[Tensor, "image 3 row column"] | Float[Tensor, "image 3 row column"]
VideoPixels = UInt8[Tensor, "video frame 3 row column"] | Float[Tensor, "video frame 3 row column"]
StemTokens = Float[Tensor, "video frame token width"]  # made by `ClipModel.frames_to_stem`


class VisionTower(nn.Module):
    """A plain ViT: images to the projected class token, or to all projected tokens."""

    def __init__(
        self, vit: VisionTransformer, freeze: int | None, wiring: Wiring, preprocessing: Preprocessing = OPENAI
    ):
        super().__init__()
        self.preprocessing = preprocessing
        self.conv1 = vit.conv1
        self.class_embedding = vit.class_embedding
        self.positional_embedding = vit.positional_embedding
        self.ln_pre = vit.ln_pre
        self.transformer = vit.transformer
        self.ln_post = vit.ln_post
        self.proj = vit.proj
        first = vit.transformer.resblocks[0]
        assert isinstance(first, ResidualAttentionBlock)
        self.width, self.heads = vit.positional_embedding.shape[1], first.attn.num_heads
        self.stem_layers = freeze  # blocks that belong to the stem; None: there is no stem
        self.all_tokens = wiring.all_tokens
        self.aggregation: PromptAggregation | None = None  # of prompts into class tokens
        self._replace_attention(wiring)
        if freeze is not None:
            _freeze(self, freeze, head=("ln_post.", "proj"), where="clip.freeze_vision")
        if wiring.prompts:
            self.aggregation = PromptAggregation(self.width, self.heads, wiring.frames)
            # Frozen blocks stay frozen, but they have to run: the stem ends where the prompts enter.
            self.stem_layers = None if freeze is None else 0
        if wiring.proxies:
            self.stem_layers = None  # frames meet in every block, and learned tokens enter before the first

    def _replace_attention(self, wiring: Wiring) -> None:
        """Give every block the attention that its tokens need; parameters and their names stay."""
        blocks = list(self.transformer.resblocks)
        if wiring.shift_layers > len(blocks):
            raise RecipeError(
                f"model.shift_layers: {wiring.shift_layers} is more than the tower's {len(blocks)} layers"
            )
        shift = partial(shift_tokens, num_frames=wiring.frames)
        switch = partial(switch_prompts, prompts=wiring.prompts) if wiring.prompts else None
        for layer, block in enumerate(blocks, 1):
            assert isinstance(block, ResidualAttentionBlock)
            last, moved = layer == len(blocks), shift if layer > len(blocks) - wiring.shift_layers else switch
            if wiring.proxies:
                per_frame = len(self.positional_embedding)
                block.register_module("attn", ProxyAttention(block.attn, 1 + wiring.proxies, per_frame))
            elif moved is not None or (last and wiring.all_tokens):
                block.register_module("attn", TokenAttention(block.attn, moved))
            elif last and self.stem_layers != len(blocks):
                block.register_module("attn", ClassTokenAttention(block.attn))

    def forward(
        self,
        frames: Images | Float[Tensor, "image token width"],
        stem_only: bool = False,
        prompts: Float[Tensor, "image prompt width"] | None = None,
        counted: Bool[Tensor, " image"] | None = None,
        proxies: Proxies | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # [image, dim], [image, token, channel], or what `_videos` returns
        """Return features of pixels (uint8, or float and normalised) or of stem tokens; or the stem tokens themselves.

        `prompts` pass through all blocks behind an image's patches, `proxies` make sequences of videos; each of a tower
        wired for it. `counted`: the images whose prompts, or tokens, are read from outside (None: all).
        """
        if proxies is not None:
            return self._videos(frames, proxies, counted)
        frozen, blocks = self.stem_layers, self.transformer.resblocks
        if frames.ndim == 4:
            with torch.set_grad_enabled(torch.is_grad_enabled() and frozen is None):
                tokens = self._embed(frames)
                for block in blocks[: frozen or 0]:
                    tokens = block(tokens)
        else:
            assert frozen is not None, "only a tower with frozen layers has a stem"
            tokens = frames
        tokens = tokens.to(self.conv1.weight.dtype)
        if stem_only:
            return tokens
        assert (prompts is None) == (self.aggregation is None), "prompts go with their wiring"
        if prompts is not None:
            tokens = torch.cat([tokens, prompts.to(tokens.dtype)], dim=1)
        for block in blocks[frozen or 0 : None if self.all_tokens or self.aggregation is not None else -1]:
            tokens = block(tokens)
        if self.all_tokens:
            return self.ln_post(tokens) @ self.proj
        classes = tokens[:, 0]
        if prompts is not None and self.aggregation is not None:
            classes = classes + self.aggregation(classes, tokens[:, -prompts.shape[1] :], counted)
        elif frozen != len(blocks):
            classes = self._last_block(tokens)
        return self.ln_post(classes) @ self.proj

    def _last_block(self, tokens: Float[Tensor, "image token width"]) -> Float[Tensor, "image width"]:
        """Run the last block for the class token alone."""
        last = self.transformer.resblocks[-1]
        assert isinstance(last, ResidualAttentionBlock)
        classes = tokens[:, 0] + last.attn(last.ln_1(tokens))
        return classes + last.mlp(last.ln_2(classes))

    def _videos(
        self, frames: Images, proxies: Proxies, counted: Bool[Tensor, " image"] | None
    ) -> tuple[Float[Tensor, "video token dim"], Float[Tensor, "video head global token"]]:
        """Return the features of all tokens of videos, and the attention of the last block's global tokens."""
        added, _, temporal = proxies
        shape = (-1, len(temporal))
        patches = self._patches(frames).unflatten(0, shape)
        hidden, tokens = None, video_tokens(patches, self.class_embedding, self.positional_embedding, proxies)
        if counted is not None:
            hidden = left_out(counted.unflatten(0, shape), 1 + len(added), len(self.positional_embedding))
        tokens, last = self.ln_pre(tokens), self.transformer.resblocks[-1]
        for block in self.transformer.resblocks[:-1]:
            tokens = block(tokens, attn_mask=hidden)
        assert isinstance(last, ResidualAttentionBlock)
        read, attention = last.attn(last.ln_1(tokens), attn_mask=hidden)
        tokens = tokens + read
        return self.ln_post(tokens + last.mlp(last.ln_2(tokens))) @ self.proj, attention

    def stem(self, frames: Images) -> Float[Tensor, "image token width"]:
        """Return the tokens after the frozen layers, which may be stored and passed in place of pixels."""
        assert self.stem_layers is not None, "only a tower with frozen layers has a stem"
        return self(frames, stem_only=True)

    def _patches(self, frames: Images) -> Float[Tensor, "image patch width"]:
        pixels = self.preprocessing.normalise(frames) if frames.dtype == torch.uint8 else frames
        return self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)

    def _embed(self, frames: Images) -> Float[Tensor, "image token width"]:
        patches = self._patches(frames)
        classes = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return self.ln_pre(torch.cat([classes, patches], dim=1) + self.positional_embedding.to(patches.dtype))


class TextTower(nn.Module):
    """A causal transformer: token ids to the feature of the sentence and of every word."""

    transformer: Transformer
    causal_mask: Tensor

    def __init__(self, clip: open_clip.CLIP, freeze: int | None, mask_padding: bool = False):
        super().__init__()
        self.token_embedding = clip.get_submodule("token_embedding")
        self.positional_embedding = clip.get_parameter("positional_embedding")
        self.transformer = clip.transformer
        self.ln_final = clip.get_submodule("ln_final")
        self.text_projection = clip.get_parameter("text_projection")
        self.register_buffer("causal_mask", clip.attn_mask, persistent=False)
        self.context, self.width = self.positional_embedding.shape
        first = self.transformer.resblocks[0]
        assert isinstance(first, ResidualAttentionBlock)
        self.layers, self.heads = len(self.transformer.resblocks), first.attn.num_heads
        self.mask_padding = mask_padding
        if freeze is not None:
            _freeze(self, freeze, head=("ln_final.", "text_projection"), where="clip.freeze_text")

    def forward(
        self, ids: Int[Tensor, "text word"], embed_only: bool = False
    ) -> tuple[Float[Tensor, "text dim"], Float[Tensor, "text word dim"]] | Float[Tensor, "text word width"]:
        """Return the feature at the end-of-text token (the largest id) and those at every position; or, with
        `embed_only`, the input of the first block.

        Ids may be shorter than CLIP's context: attention is causal, so what follows the end changes nothing before it.
        """
        num_words = ids.shape[1]
        if num_words > self.context:
            raise RecipeError(f"captions of {num_words} tokens do not fit CLIP's text tower of {self.context}")
        words = self.token_embedding(ids) + self.positional_embedding[:num_words]
        if embed_only:
            return words
        mask = self.causal_mask[:num_words, :num_words]
        if self.mask_padding:
            mask = mask.masked_fill(~real_words(ids).unsqueeze(1), -torch.inf).repeat_interleave(self.heads, dim=0)
        for block in self.transformer.resblocks:
            words = block(words, attn_mask=mask)
        words = self.ln_final(words) @ self.text_projection
        sentence = words[torch.arange(ids.shape[0], device=ids.device), ids.argmax(-1)]
        return sentence, words

    def real_words(self, ids: Int[Tensor, "text word"]) -> Bool[Tensor, "text word"]:
        """Mark the positions of tokens, start and end included."""
        return real_words(ids)

    def embed(self, ids: Int[Tensor, "text word"]) -> Float[Tensor, "text word width"]:
        """Return the tokens with their positions, before any block."""
        return self(ids, embed_only=True)


class ClipModel(nn.Module):
    """Both towers, wired as a model wants them, and the logit scale.

    `architecture` is all that `Towers.from_architecture` needs to build them again.
    """

    def __init__(self, towers: Towers, wiring: Wiring = PLAIN):
        super().__init__()
        clip, self.preprocessing = towers.clip, preprocessing_of(towers.architecture)
        self.visual: VisionTower | AnyVisionTower
        self.text: TextTower | AnyTextTower
        if isinstance(clip, open_clip.CLIP):
            assert isinstance(clip.visual, VisionTransformer)
            self.visual = VisionTower(clip.visual, towers.freeze_vision, wiring, self.preprocessing)
            self.text = TextTower(clip, towers.freeze_text, wiring.mask_padding)
        else:
            check_wiring(wiring)
            self.visual = AnyVisionTower(clip.visual, self.preprocessing, towers.unlocked_vision)
            self.text = AnyTextTower(clip.text, spelling_of(towers.architecture), towers.unlocked_text)
        self.logit_scale = LogitScale(clip.logit_scale.item())
        self.architecture = towers.architecture
        self.dim: int = towers.architecture["embed_dim"]
        assert all(p.is_contiguous() and p.ndim for p in self.parameters()), "DeepSpeed refuses such parameters"

    @property
    def plain(self) -> tuple[VisionTower, TextTower]:
        """The towers of a model that reaches into them; its wiring refuses others."""
        assert isinstance(self.visual, VisionTower) and isinstance(self.text, TextTower), "these are no plain towers"
        return self.visual, self.text

    def encode_frames(
        self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]
    ) -> Float[Tensor, "video frame *token dim"]:
        """Return features of every frame, of pixels or stem tokens; padded frames are encoded as images of zeros. The
        token axis is there if the tower gives all tokens."""
        if frames.ndim == 5:
            frames = self._blank_padding(frames, real)
        return self.visual(frames.flatten(0, 1)).unflatten(0, real.shape)

    def frames_to_stem(self, frames: VideoPixels, real: Bool[Tensor, "video frame"]) -> StemTokens:
        """Return stem tokens of every frame, padded ones included, that `encode_frames` takes in place of pixels."""
        assert isinstance(self.visual, VisionTower), "only a plain tower has a stem"
        return self.visual.stem(self._blank_padding(frames, real).flatten(0, 1)).unflatten(0, real.shape)

    def _blank_padding(
        self, frames: VideoPixels, real: Bool[Tensor, "video frame"]
    ) -> Float[Tensor, "video frame 3 row column"]:
        """Return normalised frames, zero where padded."""
        pixels = self.preprocessing.normalise(frames) if frames.dtype == torch.uint8 else frames
        return pixels.masked_fill(~real[:, :, None, None, None], 0)

    def take_logit_scale(self) -> LogitScale:
        """Hand the logit scale over to a scoring head that stores its own, so a state dict holds it once."""
        scale = self.logit_scale
        del self.logit_scale
        return scale


def _freeze(tower: VisionTower | TextTower, first: int, *, head: tuple[str, ...], where: str) -> None:
    """Leave only the head and the blocks from `first` on trainable (CLIP4Clip's freeze_layer_num)."""
    num_blocks = len(tower.transformer.resblocks)
    if first > num_blocks:
        raise RecipeError(f"{where}: {first} is more than the tower's {num_blocks} layers")
    for name, parameter in tower.named_parameters():
        in_block = name.startswith("transformer.resblocks.")
        parameter.requires_grad = int(name.split(".")[2]) >= first if in_block else name.startswith(head)
