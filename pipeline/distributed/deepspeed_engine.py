"""A raw DeepSpeed engine behind our face, ZeRO 0-3.

Forward goes through the bare module: DeepSpeed's hooks on outputs would take any other autograd pass through an
output, such as the one that weighs two losses, for the backward. Built by `engine.build_engine`.
"""

import os
import sys
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.distributed import replica, zero
from pipeline.distributed.contract import EngineConfig, autocast, finite_norm
from pipeline.distributed.fragments import Fragment, Piece, Reader, buffer_fragments, restore_buffers
from pipeline.distributed.process import Process, when_leaving
from pipeline.optim import OptimConfig, build_optimizer


class DeepSpeedEngine:
    """See `contract.Engine`."""

    def __init__(
        self, config: EngineConfig, name: str, module: nn.Module, optim: OptimConfig, process: Process
    ) -> None:
        deepspeed = import_deepspeed(process)
        self.config, self.name, self.device, self.process = config, name, process.device, process
        names = {parameter: n for n, parameter in module.named_parameters()}
        self.frozen = {n: parameter for parameter, n in names.items() if not parameter.requires_grad}
        self.adam = build_optimizer(optim, module)
        self.engine = deepspeed.initialize(model=module, optimizer=self.adam, config=settings(config, self.device))[0]
        self.module: nn.Module = self.engine.module
        self.zero: Any = self.engine.optimizer  # stage 0: the AdamW itself
        self.pieces: list[Piece] = self._build_pieces(names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.config, self.device)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        if self.config.zero_stage == 0:
            return replica.clip_and_step(self.module, self.adam, self.config.clip_norm)
        self.engine.step()
        return finite_norm(self.engine.get_global_grad_norm())

    def publish(self) -> None:
        if self.config.zero_stage == 3:
            zero.publish_partitioned(self.zero)
        elif self.config.zero_stage > 0:
            zero.publish_flat(self.zero)

    def fragments(self) -> list[Fragment]:
        rank, world_size = self.process.rank, self.process.world_size
        trained = [fragment for piece in self.pieces for fragment in piece.fragments()]
        if self.config.zero_stage == 3:
            frozen = zero.frozen_partition_fragments(self.frozen, rank)
        else:
            frozen = replica.frozen_fragments(self.frozen, rank, world_size)
        return trained + frozen + (buffer_fragments(self.module) if self.process.is_main else [])

    def scalars(self) -> dict[str, Any]:
        return {"step": self._steps()[0].item()}

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        for piece in self.pieces:
            piece.restore(reader)
        if self.config.zero_stage == 3:
            zero.restore_frozen_partitions(self.frozen, reader, self.process.rank)
        else:
            replica.restore_frozen(self.frozen, reader)
        restore_buffers(self.module, reader)
        for step in self._steps():
            step.fill_(reader.scalars["step"])
        self.publish()

    def _steps(self) -> list[Tensor]:
        """Adam's step counters: one tensor for each flat partition or parameter, all equal."""
        return [state["step"] for state in self.adam.state.values()]

    def _build_pieces(self, names: dict[nn.Parameter, str]) -> list[Piece]:
        match self.config.zero_stage:
            case 0:
                return replica.replica_pieces(self.module, self.adam, self.process.rank, self.process.world_size)
            case 3:
                return zero.partitioned_pieces(self.zero, names, self.process.rank)
            case _:
                return zero.flat_pieces(self.zero, names)


def settings(config: EngineConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's own configuration; what it would otherwise choose badly is written out."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # only its own throughput figures read this
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm if config.zero_stage > 0 else 0.0,  # unset would mean 1.0
        "zero_allow_untested_optimizer": True,
        "steps_per_print": sys.maxsize,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": config.reduce_bucket_size,  # unset would stage 2 GB for each engine
            "allgather_bucket_size": config.reduce_bucket_size,
            "overlap_comm": False,
            "contiguous_gradients": device.type != "cpu",  # the extra copy fights fragmentation, which a CPU has not
            "stage3_param_persistence_threshold": config.persistence_threshold,
        },
    }


def import_deepspeed(process: Process) -> Any:
    """The deepspeed module, told about this machine before it looks around for itself.

    Its shared-memory all-reduce for the CPU is switched off: it compiles at the first start and leaves 69 MB in
    /dev/shm for each rank and run. Gloo takes its place.
    """
    os.environ.setdefault("LOCAL_RANK", str(process.local_rank))
    if process.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(process.world_size)))
    # It calls torch's collectives by their old names, one warning for each and rank.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed import ops
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    when_leaving(deepspeed.comm.destroy_process_group)
    return deepspeed
