"""The alarm of a codebook that falls out of use while training. Called by the first stage at every step."""

import logging

from torch import Tensor

from pipeline.quantizers.base import perplexity_of

COLLAPSED_SHARE = 0.1
"""Share of the codes in use (validation), or of the largest perplexity a batch can have, below which there is alarm."""
PATIENCE_STEPS = 200
"""Steps below it before the alarm is raised, and before it is raised again."""
LOOK_EVERY_STEPS = 20
"""How often the share is looked at: to read a number means to wait for the device."""
REMEDY = "take fewer codes, cosine: true, kind: ema or simvq, or an entropy_weight"

log = logging.getLogger(__name__)


class CollapseAlarm:
    """Warns when the codes of the global batch stay few. The share goes into the journal as `codebook_balance`."""

    def __init__(self) -> None:
        self.steps_below = 0

    def look(self, usage: Tensor, step: int) -> dict[str, Tensor | float]:
        """Metrics of the counts [K] of one global batch: `batch_perplexity`, and it over the largest it could be."""
        perplexity = perplexity_of(usage)
        balance = perplexity / usage.sum().clamp(min=1, max=len(usage))
        if (step + 1) % LOOK_EVERY_STEPS == 0:
            self.steps_below = self.steps_below + LOOK_EVERY_STEPS if float(balance) < COLLAPSED_SHARE else 0
        if self.steps_below == PATIENCE_STEPS:
            log.warning(
                "step %d: the codebook is collapsing: perplexity %.1f of %d codes for %d steps; %s",
                step, perplexity, len(usage), PATIENCE_STEPS, REMEDY,
            )  # fmt: skip
            self.steps_below = 0
        return {"batch_perplexity": perplexity, "codebook_balance": balance}
