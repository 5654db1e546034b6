"""X-CLIP (Ma et al., ACM MM 2022): multi-grained contrast of sentence and words with video and frames.

Frames [video, frame, 3, row, column] or stem tokens and token ids [text, word] go in. The similarity averages four
terms: sentence-video, word-video, sentence-frame and word-frame, the last three pooled by attention over similarities
(AOSM, section 3.3). The authors' code puts a learned matrix, identity at first, into every term; this file does too:

    here          the authors' checkpoint      here          the authors' checkpoint
    global_proj   global_mat_weight            word_fine     word_mat_weight
    local_proj    local_mat_weight             word_fine2    word_mat_weight2
    word_cross    word_logit_weight            frame_fine    frame_mat_weight
    frame_cross   frame_logit_weight           frame_fine2   frame_mat_weight2

Neither words nor frames are masked in the three attention terms; only the video vector leaves padded frames out.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from distill.errors import RecipeError
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import Interaction, RetrievalConfig, Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.logit_scale import LogitScale
from distill.model.similarity import mean_pool, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers

MAX_CELLS = 2**24  # word-frame similarities held at once: 64 MiB in float32, and a few copies of it


class XClipConfig(RetrievalConfig):
    """The towers and the sizes of the scoring matrices, which fix how many words and frames the model takes."""

    kind: Literal["xclip"]
    temporal: TemporalConfig = TemporalConfig()
    words: int = Field(ge=1)  # caption length in tokens, start, end and padding included
    frames: int = Field(ge=1)  # of a video, padding included
    temperature: float = Field(default=0.01, gt=0)  # of the attention over similarities

    def fixed_sizes(self) -> dict[str, int]:
        """Return the sizes of the scoring matrices."""
        return {"words": self.words, "frames": self.frames}


class XClipInteraction(Interaction):
    """X-CLIP's scoring head: stored features to similarity, without the towers.

    It owns the logit scale, so that a label set that carries this module rebuilds the teacher's logits exactly.
    """

    def __init__(self, dim: int, words: int, frames: int, temperature: float):
        super().__init__()
        self.global_proj, self.local_proj = nn.Parameter(torch.eye(dim)), nn.Parameter(torch.eye(dim))
        self.word_cross, self.frame_cross = nn.Parameter(torch.eye(words)), nn.Parameter(torch.eye(frames))
        self.word_fine, self.word_fine2 = nn.Parameter(torch.eye(words)), nn.Parameter(torch.eye(words))
        self.frame_fine, self.frame_fine2 = nn.Parameter(torch.eye(frames)), nn.Parameter(torch.eye(frames))
        self.logit_scale = LogitScale()
        self.dim, self.words, self.frames, self.temperature = dim, words, frames, temperature

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, to build this module again."""
        return {"dim": self.dim, "words": self.words, "frames": self.frames, "temperature": self.temperature}

    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Float[Tensor, "text video"]:
        """Return logits, or with `scaled=False` the similarity before the logit scale; in float32 or better."""
        assert text.words is not None and video.frames is not None, "X-CLIP scores words and frames"
        self._check_sizes(num_words=text.words.shape[1], num_frames=video.frames.shape[1])
        sentence, words, vector, frames = map(unit, (text.sentence, text.words, video.vector, video.frames))
        with torch.autocast(sentence.device.type, enabled=False):
            similarity = self._coarse(sentence, words, vector, frames)
            size = max(1, MAX_CELLS // (words.shape[0] * words.shape[1] * frames.shape[1]))
            local = words @ self.local_proj.to(words.dtype)
            fine = torch.cat([self._word_frame(local, part) for part in frames.split(size)], dim=1)
            similarity = (similarity + fine) / 4
        return self.logit_scale(similarity) if scaled else similarity

    def _coarse(self, sentence: Tensor, words: Tensor, vector: Tensor, frames: Tensor) -> Float[Tensor, "text video"]:
        """Sum the contrasts sentence-video, word-video and sentence-frame, three of the four."""
        sentence_video = sentence @ self.global_proj.to(sentence.dtype) @ vector.T
        word_video = _attend(words @ vector.T, self.word_cross, self.temperature)
        cosines = _frames_first(sentence, frames).view(len(sentence), frames.shape[1], len(frames))
        return sentence_video + word_video + _attend(cosines, self.frame_cross, self.temperature)

    def _word_frame(
        self, words: Float[Tensor, "text word dim"], frames: Float[Tensor, "video frame dim"]
    ) -> Float[Tensor, "text video"]:
        """Pool the word-frame similarities by attention: words then frames, frames then words, averaged."""
        num_texts, num_words = words.shape[:2]
        num_videos, num_frames = frames.shape[:2]
        cells = _frames_first(words.flatten(0, 1), frames).view(num_texts, num_words, -1)  # text word (frame video)
        by_frame = _attend(cells, self.word_fine, self.temperature).view(num_texts, num_frames, num_videos)
        by_word = _attend(cells.view(-1, num_frames, num_videos), self.frame_fine, self.temperature)
        by_word = by_word.view(num_texts, num_words, num_videos)
        frame_last = _attend(by_frame, self.frame_fine2, self.temperature)
        return (frame_last + _attend(by_word, self.word_fine2, self.temperature)) / 2

    def _check_sizes(self, num_words: int, num_frames: int) -> None:
        if (num_words, num_frames) != (self.words, self.frames):
            raise RecipeError(
                f"X-CLIP was built for {self.words} words and {self.frames} frames, "
                f"but the features have {num_words} and {num_frames}; encode with the sizes of the teacher"
            )


class XClip(Teacher):
    """The heavy towers, and the interaction that scores their features.

    The logit scale is CLIP's, moved into the interaction (`clip` has none afterwards): one parameter, one
    key `interaction.logit_scale.log`, and no second scale that would never be trained.
    """

    def __init__(self, config: XClipConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers)
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal)
        self.interaction = XClipInteraction(clip.dim, config.words, config.frames, config.temperature)
        self.interaction.logit_scale = clip.take_logit_scale()

    def encode_text(self, ids: Int[Tensor, "text word"]) -> TextFeatures:
        """Return the end-of-text feature and the feature of every position."""
        sentence, words = self.clip.text(ids)
        return TextFeatures(sentence=sentence, words=words)

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the unit video vector after the temporal transformer, and CLIP's own frames before it."""
        original = self.clip.encode_frames(frames, real)
        vector = unit(mean_pool(self.temporal(original, real), real))
        return VideoFeatures(vector=vector, frames=original, real=real)


def _frames_first(
    rows: Float[Tensor, "row dim"], frames: Float[Tensor, "video frame dim"]
) -> Float[Tensor, "row frame*video"]:
    """Return inner products ordered by frame, then video. The smaller of frames and products is reordered."""
    if len(rows) < frames.shape[-1]:
        products = (rows @ frames.flatten(0, 1).T).unflatten(1, frames.shape[:2])
        return products.transpose(1, 2).flatten(1)
    return rows @ frames.transpose(0, 1).flatten(0, 1).T


def _attend(
    scores: Float[Tensor, "row n column"], mix: Float[Tensor, "n n"], temperature: float
) -> Float[Tensor, "row column"]:
    """Pool the middle axis by its own softmax, mixed by a learned matrix: sum((softmax(s / temperature) mix) * s)."""
    mix = mix.to(scores.dtype).T.expand(len(scores), -1, -1)
    return (torch.bmm(mix, (scores / temperature).softmax(1)) * scores).sum(1)
