"""LPIPS with VGG16, from the `lpips` package and a local file of VGG16 weights; nothing is downloaded.

The package gives the network's slices and the calibrated linear layers; the distance itself stands here, because the
package's normalisation has no finite gradient where all features are zero. Called by `reconstruction`.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.config import UserError
from pipeline.torchvision_shim import declare_missing_operators

EPSILON = 1e-10
RANGE_TOLERANCE = 1e-3


class PerceptualDistance(nn.Module):
    """Calibrated distance of VGG16 features; frozen, and in eval mode for ever.

    Args:
        file: state dict of torchvision's VGG16; None looks where torch keeps what it once downloaded.

    Raises:
        UserError: the package or the file is missing, or the file holds another network.
    """

    def __init__(self, file: Path | None = None) -> None:
        super().__init__()
        self.model = _load(file or cached_file()).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever the parent does: the package's dropout must never act."""
        return super().train(False)

    def forward(self, restored: Tensor, images: Tensor) -> Tensor:
        """Distance of each pair: reconstructions and pictures [B, 3, H, W], pictures in [-1, 1], to float32 [B]."""
        # On the device: an assert of Python's would wait for it at every step.
        torch._assert_async(images.detach().abs().max() <= 1 + RANGE_TOLERANCE, "LPIPS takes pictures in [-1, 1]")
        features = [self.model.net(self.model.scaling_layer(x)) for x in (restored, images)]
        with torch.autocast(images.device.type, enabled=False):  # low precision is for the convolutions only
            distance = torch.zeros(len(images), device=images.device)
            for linear, a, b in zip(self.model.lins, *features, strict=True):
                squared = (_unit(a.float()) - _unit(b.float())).square()  # [B, C, h, w]
                distance = distance + linear(squared).mean(dim=(1, 2, 3))
        return distance  # [B]


def _unit(features: Tensor) -> Tensor:
    """Unit length over channels, with a finite gradient at zero: the epsilon stands inside the root."""
    return features / (features.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


def cached_file() -> Path:
    """Where torch's own downloads would have put torchvision's VGG16 ($TORCH_HOME/hub/checkpoints)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"


def network() -> Any:
    """The package's LPIPS with its own linear layers; VGG16 without its weights.

    Raises:
        UserError: the package is missing.
    """
    declare_missing_operators()
    try:
        import lpips
    except ImportError:
        raise UserError("perceptual_weight > 0 needs the package lpips: install it, or set the weight to 0") from None
    return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


def _load(file: Path) -> Any:
    """`network` with the VGG16 weights of `file`."""
    if not file.is_file():
        raise UserError(f"perceptual_file {file}: no such file; put torchvision's VGG16 there, or set the weight to 0")
    model = network()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    trunk = {name.removeprefix("features."): tensor for name, tensor in weights.items() if name.startswith("features.")}
    slices = (model.net.slice1, model.net.slice2, model.net.slice3, model.net.slice4, model.net.slice5)
    for part in slices:
        wanted = {name: trunk[name] for name in part.state_dict() if name in trunk}
        try:
            part.load_state_dict(wanted)
        except RuntimeError as error:
            raise UserError(f"perceptual_file {file}: not VGG16: {' '.join(str(error).split())}") from None
    return model
