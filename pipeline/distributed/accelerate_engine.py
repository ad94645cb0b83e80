"""accelerate behind our face: one device, or DDP over several; every rank holds the whole training state.

Built by `engine.build_engine`.
"""

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.distributed import replica
from pipeline.distributed.contract import EngineConfig, autocast, is_training
from pipeline.distributed.fragments import Fragment, Reader, buffer_fragments, restore_buffers
from pipeline.distributed.process import Process, when_leaving
from pipeline.optim import OptimConfig, build_optimizer


class AccelerateEngine:
    """See `contract.Engine`."""

    def __init__(
        self, config: EngineConfig, name: str, module: nn.Module, optim: OptimConfig, process: Process
    ) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        self.config, self.name, self.device, self.process = config, name, process.device, process
        self.module = module
        self.frozen = {n: parameter for n, parameter in module.named_parameters() if not parameter.requires_grad}
        self.adam = build_optimizer(optim, module)
        # DDP regroups its buckets after the first step, which changes the order of sums over three and more ranks: a
        # resumed run would not be bit-equal. It never does so while it looks for unused parameters.
        ddp = DistributedDataParallelKwargs(
            broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
        )
        self.accelerator = Accelerator(cpu=process.device.type == "cpu", mixed_precision="no", kwargs_handlers=[ddp])
        when_leaving(AcceleratorState._reset_state)
        assert self.accelerator.num_processes == process.world_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # accelerate knows only the old name of broadcast_buffers
            self.wrapped: nn.Module = self.accelerator.prepare_model(module)
        self.pieces = replica.replica_pieces(module, self.adam, process.rank, process.world_size)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # DDP waits after each of its forwards for a backward into its parameters.
        return (self.wrapped if is_training(self.module) else self.module)(*args, **kwargs)

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.config, self.device)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, learning_rate: float) -> float:
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        return replica.clip_and_step(self.module, self.adam, self.config.clip_norm)

    def publish(self) -> None:
        """Nothing to do: the masters are the weights."""

    def fragments(self) -> list[Fragment]:
        trained = [fragment for piece in self.pieces for fragment in piece.fragments()]
        frozen = replica.frozen_fragments(self.frozen, self.process.rank, self.process.world_size)
        return trained + frozen + (buffer_fragments(self.module) if self.process.is_main else [])

    def scalars(self) -> dict[str, Any]:
        return {"step": self._steps()[0].item()}

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        for piece in self.pieces:
            piece.restore(reader)
        replica.restore_frozen(self.frozen, reader)
        restore_buffers(self.module, reader)
        for step in self._steps():
            step.fill_(reader.scalars["step"])

    def _steps(self) -> list[Tensor]:
        """Adam's step counters: one tensor for each parameter, all equal."""
        return [state["step"] for state in self.adam.state.values()]
