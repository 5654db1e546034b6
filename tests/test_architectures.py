"""Every architecture that open_clip knows gives its own features here, as far as it is small; or is refused in words.

`make architectures` compares larger ones too: ARCHITECTURES says below how many millions of parameters. A trunk is
built twice, by open_clip's factory and by the toolkit, and gets the same weights.
"""

import gc
import os
from functools import cache

import open_clip
import pytest
import torch
from test_towers import close
from torch import Tensor, nn

from distill.errors import RecipeError
from distill.model.architecture import is_plain
from distill.model.clip import ClipModel
from distill.model.towers import BIAS, Towers, named_architecture

NAMES = open_clip.list_models()
FOREIGN = {"multimodal_cfg", "hf_model_name"}  # CoCa's decoder, and text towers of another library
MILLIONS = float(os.environ.get("ARCHITECTURES", "100"))


@cache
def towers_on_meta(name: str) -> dict[str, torch.Size]:
    """The shapes of all weights of an architecture, as the toolkit builds it, without memory for any."""
    with torch.device("meta"):
        clip = Towers.from_architecture(named_architecture(name)).clip
    return {key: parameter.shape for key, parameter in clip.named_parameters()}


def refused(name: str) -> bool:
    """Whether open_clip's own description names a part that the toolkit does not take."""
    described = open_clip.get_model_config(name)
    return bool(FOREIGN & {*described, *described["text_cfg"]})


def own(name: str, device: str) -> nn.Module:
    """open_clip's model from its factory, with the names of the toolkit's."""
    custom = not is_plain(named_architecture(name))
    options = {"force_custom_text": custom, "nonscalar_logit_scale": True, "load_weights": False}
    with torch.device(device):
        return open_clip.create_model(name, pretrained=None, device=device, **options).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if refused(name)])
def test_what_is_not_taken_is_refused_in_one_line(name: str):
    with pytest.raises(
        RecipeError, match=rf"^clip\.model {name}: .*(multimodal_cfg|hf_model_name).*; take one"
    ) as found:
        named_architecture(name)
    assert "\n" not in str(found.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not refused(name)])
def test_an_architecture_has_open_clip_s_weights(name: str):
    expected = {key: value.shape for key, value in own(name, "meta").named_parameters() if key != BIAS}
    assert towers_on_meta(name) == expected


@pytest.fixture
def random_clip(name: str):
    """open_clip's model, with random weights and statistics, and the toolkit's with the same."""
    if sum(shape.numel() for shape in towers_on_meta(name).values()) >= 1e6 * MILLIONS:
        pytest.skip(f"larger than {MILLIONS:g} million parameters; make architectures")
    torch.manual_seed(0)
    expected = own(name, "cpu")
    for key, buffer in expected.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    towers = Towers.from_architecture(named_architecture(name))
    towers.clip.load_state_dict({key: value for key, value in expected.state_dict().items() if key != BIAS})
    yield expected, ClipModel(towers)
    del expected, towers
    gc.collect()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NAMES if not refused(name)])
def test_features_are_open_clip_s_own(name: str, random_clip: tuple[nn.Module, ClipModel]):
    expected, clip = random_clip
    size = named_architecture(name)["vision_cfg"].get("image_size", 224)
    pixels = torch.randn(1, 3, size, size)
    assert close(clip.visual(pixels), expected.encode_image(pixels))
    ids = torch.randint(1, 1000, (2, clip.text.context))
    sentence, words = clip.text(ids)
    assert close(sentence, expected.encode_text(ids))
    told = expected.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True, normalize=False)
    assert close(sentence, told["text_features"])
    assert close(words, projected(expected, told["text_intermediates"][-1]))
    assert not close(sentence[:1], sentence[1:]) and not close(words[:, :-1], words[:, 1:])


def projected(model: nn.Module, words: Tensor) -> Tensor:
    """Words of a text tower's width in the space of its sentences."""
    projection = (model if isinstance(model, open_clip.CLIP) else model.text).text_projection
    if isinstance(projection, nn.Linear):
        return projection(words)
    return words if projection is None else words @ projection
