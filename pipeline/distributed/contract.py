"""What a training engine is: its configuration, its face, and the few rules that both engines share.

Implemented by `deepspeed_engine` and `accelerate_engine`, chosen by `engine.build_engine`, used by the stages.
"""

import math
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.distributed.fragments import Fragment, Piece, Reader


class EngineConfig(Config):
    """How a model is trained over the ranks."""

    kind: Literal["deepspeed", "accelerate"] = "deepspeed"
    """`deepspeed` shards by ZeRO; `accelerate` is one device, or DDP on several."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What ZeRO shards (DeepSpeed only): 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the matrix products inside `autocast()`; parameters, moments and averages are fp32 always."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 never clips."""
    reduce_bucket_size: int = Field(default=20_000_000, ge=1_000_000, le=50_000_000)
    """Elements of a gradient bucket (DeepSpeed only): larger buckets overlap less and need more memory."""
    persistence_threshold: int = Field(default=100_000, ge=0)
    """Parameters with fewer elements stay whole under ZeRO 3."""


class Engine(Protocol):
    """A module in training on every rank. Also `Stateful`: the module's parameters, moments and buffers."""

    name: str
    """Name of the part in checkpoints, such as `autoencoder`."""
    module: nn.Module
    """The unwrapped module."""
    device: torch.device
    """Where the module is."""
    pieces: list[Piece]
    """What this rank holds of the trainable parameters; the same list for the life of the engine."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The training forward. With a frozen module, or without grad, it is the module's own forward.

        The tensors of the output are in (named) tuples, lists or dicts: ZeRO 3 looks for them nowhere else.
        """
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """The block in which forward and losses run in the configured precision."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Gradients of the rank-local scalar `loss`, averaged over ranks. Once for each step."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients. Returns the global gradient norm before clipping.

        A norm that is not finite comes back as inf and leaves weights and moments as they were.
        """
        ...

    def publish(self) -> None:
        """Carry changed master weights over to the weights that forward uses. Collective."""
        ...

    def fragments(self) -> list[Fragment]: ...

    def scalars(self) -> dict[str, Any]: ...

    def restore(self, reader: Reader) -> None: ...


def autocast(config: EngineConfig, device: torch.device) -> AbstractContextManager[None]:
    """torch's autocast of `config.precision`; nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def is_training(module: nn.Module) -> bool:
    """True when a forward now would lead to a backward into the parameters of `module`."""
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def finite_norm(norm: Tensor | float | None) -> float:
    """A global norm as a Python float, with inf for every kind of invalid (DeepSpeed says -1)."""
    value = math.inf if norm is None else float(norm)
    return value if math.isfinite(value) and value >= 0 else math.inf
