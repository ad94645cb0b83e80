"""The first weights of a discriminator, from its own generator. Called by each of them."""

from collections.abc import Callable

from torch import Tensor, nn


def draw_weights(module: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draw the weights of all convolutions in order; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
