"""Prompt Switch (Deng et al., ICCV 2023): prompts that carry what one frame has seen to the others, block by block.

A cube is a run of P frames, one after the other, and each of them carries P prompt tokens behind its patches. Before
every visual block's attention the cube is transposed: prompt j of frame i and prompt i of frame j change places, so
after two blocks every frame has heard of every other one, while attention itself never leaves a frame. At the end each
frame's class token reads the prompts of all frames of its clip, a whole number of cubes.

Images are the frames of whole videos, one after the other; tokens are [image, token, width], prompts the last P.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill.model.decoder import Attention

INIT_STD = 0.02  # times width ** -0.5, as CLIP's own embeddings


class PromptCube(nn.Module):
    """Learned prompts of every frame and every slot of a cube."""

    def __init__(self, prompts: int, width: int):
        super().__init__()
        self.cube = nn.Parameter(torch.randn(prompts, prompts, width) * INIT_STD * width**-0.5)  # frame slot width

    def forward(self, num_images: int | torch.SymInt) -> Float[Tensor, "image prompt width"]:
        """Repeat the cube for so many images, which must be whole cubes; a symbol where a graph is traced."""
        size = self.cube.shape[0]
        assert num_images % size == 0, f"{num_images} images are no whole number of cubes of {size}"
        return self.cube.repeat(num_images // size, 1, 1)


def switch_prompts(tokens: Float[Tensor, "image token width"], prompts: int) -> Float[Tensor, "image token width"]:
    """Exchange prompt j of frame i and prompt i of frame j within every cube; the other tokens stay where they are."""
    cubes = tokens[:, -prompts:].unflatten(0, (-1, prompts))  # cube frame slot width
    return torch.cat([tokens[:, :-prompts], cubes.transpose(1, 2).flatten(0, 1)], dim=1)


class PromptAggregation(nn.Module):
    """Attention through which the class tokens of a clip of `frames` frames read all prompts of the clip.

    The output layer starts at zero, so they gain nothing until it is trained.
    """

    def __init__(self, width: int, heads: int, frames: int):
        super().__init__()
        self.attention = Attention(width, heads)
        nn.init.zeros_(self.attention.out_proj.weight)
        self.frames = frames

    def forward(
        self,
        classes: Float[Tensor, "image width"],
        prompts: Float[Tensor, "image prompt width"],
        counted: Bool[Tensor, " image"] | None,
    ) -> Float[Tensor, "image width"]:
        """Return the addition to the class tokens; prompts of images that do not count are not read (None: all do)."""
        clip = (-1, self.frames)
        memory = prompts.unflatten(0, clip).flatten(1, 2)  # clip (frame slot) width
        visible = None
        if counted is not None:
            visible = counted.repeat_interleave(prompts.shape[1]).view(memory.shape[0], 1, -1)
        return self.attention(classes.unflatten(0, clip), memory, visible)[0].flatten(0, 1)


def repeat_last(
    frames: Tensor,  # [video, frame, ...]: pixels or stem tokens
    real: Bool[Tensor, "video frame"],
) -> Tensor:
    """Replace padded frames by the last real one, as the authors' loader completes short videos."""
    order = torch.arange(real.shape[1], device=real.device)
    last = (order * real).amax(1, keepdim=True)
    taken = torch.where(real, order, last)
    return frames[torch.arange(frames.shape[0], device=real.device).unsqueeze(1), taken]
