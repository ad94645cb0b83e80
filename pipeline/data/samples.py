"""What a decoder makes of one tar sample; the reader knows only this, not whether it holds pictures or latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pipeline.data.tar import TarSample


class BadSample(ValueError):
    """A sample that arrived but cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Decoded:
    """One readable sample."""

    key: str
    caption: str
    array: np.ndarray
    """uint8 [H, W, 3] pixels, or a [C, h, w] latent."""
    metadata: bytes = b"{}"
    """The `json` member."""
    text_states: np.ndarray | None = None
    """[T, D] of a frozen text tower, beside a latent."""


@dataclass(frozen=True)
class Arrays:
    """The tensors of a `Batch`."""

    images: Tensor | None = None
    latents: Tensor | None = None
    text_states: Tensor | None = None


class Decoder(Protocol):
    """Members of samples to arrays, and arrays to tensors; called from several threads."""

    def __call__(self, sample: TarSample, epoch: int, sample_id: int) -> Decoded:
        """One sample; raises BadSample."""
        ...

    def stack(self, samples: Sequence[Decoded]) -> Arrays:
        """The tensors of a batch, also of no samples at all."""
        ...
