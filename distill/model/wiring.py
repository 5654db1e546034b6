"""How a model wants its towers built: which tokens meet, and what passes through beside a picture's own."""

from dataclasses import dataclass, replace

from distill.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """How a model wants its towers built; the defaults are CLIP's own way, one feature of each frame by itself."""

    all_tokens: bool = False  # the vision tower returns every token's feature, not the class token's alone
    shift_layers: int = 0  # last vision blocks before whose attention tokens change frames (TS2-Net); with all_tokens
    prompts: int = 0  # prompt tokens of each frame, which change places before every vision block (Prompt Switch)
    frames: int = 0  # of a video or clip in which tokens or prompts meet; images must be those of whole ones
    proxies: int = 0  # learned tokens beside the class token, through which the frames of a video meet (CLIP-ViP)
    # The text tower masks padding in self-attention (GLSCL). It is causal, so only features of padding change.
    mask_padding: bool = False


PLAIN = Wiring()


def check_wiring(wiring: Wiring) -> None:
    """Refuse a model that reaches into a plain ViT. Padding is no such thing: other text towers mask it themselves."""
    if replace(wiring, mask_padding=False, frames=0) != PLAIN:
        raise RecipeError(
            "clip.model: not a plain vision transformer, of which model.kind takes patch tokens or to which it gives "
            "prompts; name one that is, or a model that takes any: clip4clip, teachclip, glscl, xclip, xpool"
        )
