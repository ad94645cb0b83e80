"""Whether a run is worth going on with: its losses are finite and its steps applied. Used by `pipeline.trainer`."""

import math
from collections import Counter
from collections.abc import Callable, Mapping

MAX_SKIPPED_STEPS = 10
"""Steps in a row that the engines may skip for gradients that are not finite, before the run is given up."""


class DivergedError(Exception):
    """A loss is no longer finite: going on would only spoil the weights."""


class Health:
    """Ends a run that has diverged, at once for a loss, after some steps for gradients."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()

    def check(
        self, step: int, metrics: Mapping[str, float], find_layer: Callable[[], str | None] = lambda: None
    ) -> None:
        """Look at the metrics of a step; the same on all ranks, so all raise or none.

        Args:
            find_layer: asked, by all ranks, which layer it was.

        Raises:
            DivergedError: a `_loss` is not finite, or a `_norm` has not been for `MAX_SKIPPED_STEPS` steps.
        """
        for name, value in metrics.items():
            self.skipped[name] = 0 if math.isfinite(value) else self.skipped[name] + 1
            if name.endswith("_loss") and self.skipped[name]:
                layer = find_layer()
                where = f", first in {layer}" if layer else ""
                raise DivergedError(f"step {step}: {name} is {value}{where}; lower the learning rate or set clip_norm")
            if name.endswith("_norm") and self.skipped[name] >= MAX_SKIPPED_STEPS:
                raise DivergedError(f"step {step}: {name} is {value} for {MAX_SKIPPED_STEPS} steps, none was applied")
