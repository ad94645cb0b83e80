"""Where a network first stops being finite: the layer named in the message of a diverged run. Called by the stages."""

from typing import Any

from torch import Tensor, nn


def first_not_finite(module: nn.Module, *inputs: Any) -> str | None:
    """Name of the first layer whose output is NaN or infinite while its input is not; None when all is finite.

    Weights are looked at where they are used, so a layer with a spoilt weight is that layer. Runs `module` once.
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all() and not found:
                found.append(name)

        return look

    handles = [layer.register_forward_hook(watch(name)) for name, layer in module.named_modules() if name]
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
