"""CLIPs of a few thousand random weights, in open_clip's two kinds of image towers."""

import torch
from torch import nn

from bt_adapter.backbone import FrozenCLIP

VISION = dict(image_size=16, patch_size=8, width=24, layers=5, head_width=8)
TEXT = dict(context_length=8, vocab_size=50, width=16, heads=2, layers=2)


def shake(module: nn.Module, seed: int = 0, std: float = 0.3):
    """Random values for every parameter, so that none is zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (parameter.data + std * noise).to(parameter.dtype)


def tiny_clip(quick_gelu: bool = False, seed: int = 0, **vision) -> FrozenCLIP:
    """4 patches, width 24, 3 heads, 5 layers, joint width 20, unless told otherwise."""
    import open_clip

    torch.manual_seed(seed)
    model = open_clip.CLIP(20, VISION | vision, TEXT, quick_gelu=quick_gelu)
    shake(model, seed)
    return FrozenCLIP(model, None, "tiny")


class Tower(nn.Module):
    """A timm trunk as open_clip's TimmModel holds it."""

    def __init__(self, trunk, size):
        super().__init__()
        self.trunk, self.head, self.image_size = trunk, nn.Sequential(), (size, size)

    def forward(self, images):
        return self.head(self.trunk(images))


def tiny_eva(seed: int = 0, **changes) -> FrozenCLIP:
    """An EVA-01 of the same sizes, with its fractional feed-forward width."""
    from timm.models.eva import Eva

    torch.manual_seed(seed)
    sizes = dict(img_size=16, patch_size=8, embed_dim=24, depth=5, num_heads=3, mlp_ratio=4.3637)
    trunk = Eva(num_classes=20, **(sizes | dict(global_pool="token") | changes))
    shake(trunk, seed)
    model = nn.Module()
    model.visual = Tower(trunk, 16)
    model.encode_image = model.visual.forward
    return FrozenCLIP(model, None, "tiny-eva")
