"""What the loader hands to a stage: one rank's part of one global batch."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Batch:
    """B samples; pixels stay uint8 until they are on the device, so that a copy moves a quarter of the bytes."""

    sample_ids: list[int]
    """Global index of each sample in the manifest: with `epochs`, the key of all its random draws."""
    epochs: list[int]
    keys: list[str]
    captions: list[str]
    images: Tensor | None = None
    """uint8 [B, 3, H, W], contiguous."""
    latents: Tensor | None = None
    """float32 [B, C, h, w], before quantisation, not normalised."""
    text_states: Tensor | None = None
    """float32 [B, T, D] of a frozen text tower, when the latents were made with one."""
    metadata: list[bytes] = field(default_factory=list)
    """The `json` member of each sample as it is stored; `{}` where there is none."""
    fetch_seconds: float = 0.0
    """Time that the consumer waited for this batch."""
