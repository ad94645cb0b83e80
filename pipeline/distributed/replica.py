"""The training state of a module that every rank holds whole: ZeRO 0, DDP, one device.

All ranks hold the same bits, so each writes its share of them and reads everything. Called by both engines.
"""

import torch
from torch import nn
from torch.optim import AdamW

from pipeline.distributed.contract import finite_norm
from pipeline.distributed.fragments import Fragment, Piece, Reader, written_slices
from pipeline.optim import adam_state


def replica_pieces(module: nn.Module, optimizer: AdamW, rank: int, world_size: int) -> list[Piece]:
    """One piece for each trainable parameter; the parameters are their own masters."""
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    written = written_slices([p.numel() for _, p in trainable], rank, world_size)
    pieces = []
    for (name, parameter), share in zip(trainable, written, strict=True):
        state = adam_state(optimizer, parameter)
        master, exp_avg, exp_avg_sq = (t.detach().view(-1) for t in (parameter, state["exp_avg"], state["exp_avg_sq"]))
        pieces.append(Piece(name, tuple(parameter.shape), 0, master, exp_avg, exp_avg_sq, share))
    return pieces


def clip_and_step(module: nn.Module, optimizer: AdamW, clip_norm: float) -> float:
    """Clip the gradients by their global norm, update, clear. Returns the norm before clipping, inf when invalid."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    norm = finite_norm(total)
    if norm < float("inf"):
        if clip_norm > 0.0:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, total)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def frozen_fragments(frozen: dict[str, nn.Parameter], rank: int, world_size: int) -> list[Fragment]:
    """The rank's share of the parameters that are never trained."""
    written = written_slices([p.numel() for p in frozen.values()], rank, world_size)
    return [
        Fragment(name, "param", tuple(p.shape), share.start, p.detach().view(-1)[share])
        for (name, p), share in zip(frozen.items(), written, strict=True)
        if share.start < share.stop
    ]


@torch.no_grad()
def restore_frozen(frozen: dict[str, nn.Parameter], reader: Reader) -> None:
    """Overwrite the parameters that are never trained."""
    for name, parameter in frozen.items():
        parameter.view(-1).copy_(reader.read(name, "param", 0, parameter.numel()))
