"""Weights and pictures by formula, so that golden numbers of other code need no file: both sides fill in the same.

formula_tensors(module.state_dict())      # the same names and shapes, filled
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

VGG16 = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
"""Channels of each convolution, by its number among torchvision's `features`."""


def formula(shape: tuple[int, ...] | torch.Size, number: int = 0) -> Tensor:
    """float32 in [-1, 1) that look drawn: 2 frac(43758.5453 sin(12.9898 i + 78.233 n)) - 1 for the flat index i."""
    index = torch.arange(int(torch.Size(shape).numel()), dtype=torch.float64)
    waves = 43758.5453 * torch.sin(12.9898 * index + 78.233 * number)
    return (2 * (waves - waves.floor()) - 1).reshape(shape).float()


def formula_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Filled by the place of the name in the alphabet: weights that keep the scale of what passes, norms near 1."""
    filled = {}
    for number, name in enumerate(sorted(state)):
        drawn = formula(state[name].shape, number)
        if name.endswith("running_var") or (drawn.ndim == 1 and name.endswith("weight")):
            filled[name] = 1 + 0.3 * drawn
        elif drawn.ndim > 1:
            filled[name] = drawn * (6 / drawn[0].numel()) ** 0.5
        elif drawn.ndim == 1:
            filled[name] = 0.1 * drawn
    return filled


def save_vgg16(file: Path) -> Path:
    """A state dict as torchvision's VGG16 has it, without its classifier."""
    state, width = {}, 3
    for place, channels in VGG16.items():
        state[f"features.{place}.weight"] = formula((channels, width, 3, 3), place) * (6 / (9 * width)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * formula((channels,), place + 1)
        width = channels
    torch.save(state, file)
    return file
