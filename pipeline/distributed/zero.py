"""What DeepSpeed's ZeRO optimizers keep in private: the pieces that a rank holds, and how weights follow masters.

Names are those of DeepSpeed 0.19; tests/distributed compares every stage with plain torch.
Called by `deepspeed_engine`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.distributed.fragments import Fragment, Piece, Reader
from pipeline.optim import adam_state


def flat_pieces(zero: Any, names: dict[nn.Parameter, str]) -> list[Piece]:
    """ZeRO 1 and 2: one flat fp32 partition for each parameter group, which cuts parameters anywhere."""
    pieces = []
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            if (mapping := parameter._hp_mapping) is None:  # lies in another rank's partition
                continue
            begin, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
            offset = mapping.lp_fragment_address.start
            pieces.append(_piece(zero, flat, begin, length, names[parameter], tuple(parameter.shape), offset))
    return pieces


def partitioned_pieces(zero: Any, names: dict[nn.Parameter, str], rank: int) -> list[Piece]:
    """ZeRO 3: each parameter cut into equal partitions, the last one padded; partitions lie in flat sub-groups."""
    pieces = []
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        begin = 0
        for parameter in group:
            offset, length = _partition_of(parameter, rank)
            if length > 0:
                pieces.append(_piece(zero, flat, begin, length, names[parameter], tuple(parameter.ds_shape), offset))
            begin += parameter.partition_numel()
    return pieces


def publish_flat(zero: Any) -> None:
    """ZeRO 1 and 2: masters -> weights of every rank."""
    zero.update_lp_params()


@torch.no_grad()
def publish_partitioned(zero: Any) -> None:
    """ZeRO 3: masters -> partitions, then the small parameters that stay whole -> every rank."""
    zero._partition_all_parameters()
    for sub_group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(sub_group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def frozen_partition_fragments(frozen: Mapping[str, Any], rank: int) -> list[Fragment]:
    """ZeRO 3: the rank's partitions of the parameters that are never trained."""
    fragments = []
    for name, parameter in frozen.items():
        offset, length = _partition_of(parameter, rank)
        if length > 0:
            run = parameter.ds_tensor.detach().view(-1)[:length]
            fragments.append(Fragment(name, "param", tuple(parameter.ds_shape), offset, run))
    return fragments


@torch.no_grad()
def restore_frozen_partitions(frozen: Mapping[str, Any], reader: Reader, rank: int) -> None:
    """ZeRO 3: overwrite the rank's partitions; `publish_partitioned` has to follow."""
    for name, parameter in frozen.items():
        offset, length = _partition_of(parameter, rank)
        if length > 0:
            parameter.ds_tensor.view(-1)[:length].copy_(reader.read(name, "param", offset, length))


def _partition_of(parameter: Any, rank: int) -> tuple[int, int]:
    """(offset in the flattened parameter, length without padding) of the rank's partition."""
    size = parameter.partition_numel()
    offset = min(size * rank, parameter.ds_numel)
    return offset, min(size, parameter.ds_numel - offset)


def _piece(zero: Any, flat: Tensor, begin: int, length: int, name: str, shape: tuple[int, ...], offset: int) -> Piece:
    state = adam_state(zero.optimizer, flat)
    runs = (t.detach()[begin : begin + length] for t in (flat, state["exp_avg"], state["exp_avg_sq"]))
    master, exp_avg, exp_avg_sq = runs
    return Piece(name, shape, offset, master, exp_avg, exp_avg_sq, written=slice(0, length))
