"""One thin face for two training engines: DeepSpeed (ZeRO 0-3) and accelerate (one device or DDP).

A stage runs its forward through the engine, hands it one loss for one backward, and steps; parameters stay fp32 and
low precision is `autocast()`. Both engines give the same losses. Called by the stages; state goes to
`pipeline.checkpoint` as fragments, and `Ema` averages the pieces that each rank holds.
"""

from collections.abc import Callable

import torch
from torch import nn

from pipeline.config import UserError
from pipeline.distributed.contract import Engine, EngineConfig
from pipeline.distributed.process import Process
from pipeline.optim import OptimConfig

__all__ = ["Engine", "EngineConfig", "build_engine"]


def build_engine(config: EngineConfig, name: str, module: nn.Module, optim: OptimConfig, process: Process) -> Engine:
    """Move `module` to the device of `process`, give every rank the weights of rank 0, wrap it for training.

    Parameters that do not require grad now are frozen for good; those that do may be frozen for a while by the caller.

    Raises:
        UserError: a parameter is not float32.
    """
    _check_module(name, module)
    module.to(process.device)
    return _ENGINES[config.kind]()(config, name, module, optim, process)


def _check_module(name: str, module: nn.Module) -> None:
    for parameter_name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"{name}.{parameter_name} is {parameter.dtype}, not float32: for speed set precision: bf16")
        assert parameter.is_contiguous(), f"{name}.{parameter_name}: pieces are views of contiguous parameters"
    assert any(parameter.requires_grad for parameter in module.parameters()), f"{name}: nothing to train"


def _deepspeed_engine() -> Callable[..., Engine]:
    from pipeline.distributed.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine


def _accelerate_engine() -> Callable[..., Engine]:
    from pipeline.distributed.accelerate_engine import AccelerateEngine

    return AccelerateEngine


_ENGINES: dict[str, Callable[[], Callable[..., Engine]]] = {
    "deepspeed": _deepspeed_engine,  # imported only when chosen: each library takes seconds to load
    "accelerate": _accelerate_engine,
}
