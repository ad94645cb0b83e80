"""Small models and plain-torch references that the tests of engines, averages and checkpoints share."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distributed.contract import Engine
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.fragments import Fragment, Stateful
from pipeline.distributed.process import Process, on_every_rank
from pipeline.optim import OptimConfig, build_optimizer

OPTIM = OptimConfig(learning_rate=3e-3, weight_decay=0.1)
CLIP = 0.5
LOW_PRECISION = {
    "accelerate_bf16": EngineConfig(kind="accelerate", clip_norm=CLIP, precision="bf16"),
    "zero2_bf16": EngineConfig(zero_stage=2, clip_norm=CLIP, precision="bf16"),
    "zero3_bf16": EngineConfig(zero_stage=3, clip_norm=CLIP, precision="bf16", persistence_threshold=0),
}
VARIANTS = {
    "accelerate": EngineConfig(kind="accelerate", clip_norm=CLIP),
    "zero0": EngineConfig(zero_stage=0, clip_norm=CLIP),
    "zero1": EngineConfig(zero_stage=1, clip_norm=CLIP),
    "zero2": EngineConfig(zero_stage=2, clip_norm=CLIP),
    # far below what a config may say, so that even this small net fills several buckets
    "zero2_buckets": EngineConfig(zero_stage=2, clip_norm=CLIP).model_copy(update={"reduce_bucket_size": 50}),
    "zero3": EngineConfig(zero_stage=3, clip_norm=CLIP, persistence_threshold=0),
    "zero3_persistent": EngineConfig(zero_stage=3, clip_norm=CLIP, persistence_threshold=50),
}


class Output(NamedTuple):
    """Named, as the models of the stages return it."""

    image: Tensor
    hidden: Tensor


class Net(nn.Module):
    """Odd sizes (so that partitions cut weights), weights of its own, a buffer that moves, a frozen weight."""

    def __init__(self, seed: int = 0, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.GroupNorm(1, 7)
        self.last = nn.Conv2d(7, outputs, 3, padding=1)
        self.frozen = nn.Parameter(torch.randn(7, 1, 1), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(7, 1, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def hidden(self, x: Tensor) -> Tensor:
        return F.silu(self.scale * self.norm(self.first(x)) + self.frozen)

    def forward(self, x: Tensor) -> Output:
        if self.training:
            self.calls += 1
        h = self.hidden(x)
        return Output(self.last(h), h)


def make_engine(variant: str, process: Process, seed: int = 0, name: str = "net") -> Engine:
    """Every rank but 0 starts from other weights: the engine has to make them equal."""
    module = Net(seed if process.rank == 0 else 100 + process.rank)
    module.frozen.data.copy_(Net(seed).frozen)
    return build_engine((VARIANTS | LOW_PRECISION)[variant], name, module, OPTIM, process)


def images(step: int, rank: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(1000 * step + rank))


def train_engine(engine: Engine, steps: range, process: Process) -> list[float]:
    norms = []
    for step in steps:
        x = images(step, process.rank)
        with engine.autocast():
            y = engine(x).image
        engine.backward((y.float() - x).abs().mean())
        norms.append(engine.step(1e-2 / (1 + step)))
    return norms


class Plain:
    """The same training in plain torch: gradients averaged by hand, AdamW, global clipping."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.adam = build_optimizer(OPTIM, module)

    def apply(self, learning_rate: float) -> float:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if dist.is_initialized():
            for gradient in gradients:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), CLIP))
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        self.adam.zero_grad()
        return norm


def train_plain(plain: Plain, steps: range, rank: int) -> list[float]:
    norms = []
    for step in steps:
        x = images(step, rank)
        y = plain.module(x).image
        (y - x).abs().mean().backward()
        norms.append(plain.apply(1e-2 / (1 + step)))
    return norms


def assemble(stateful: Stateful) -> dict[str, Tensor]:
    """`field/name` -> whole tensor, from the fragments of all ranks; each element must be written exactly once."""
    whole: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    for fragments in on_every_rank(lambda: [_copy(f) for f in stateful.fragments()]):
        for f in fragments:
            key = f"{f.field}/{f.name}"
            target = whole.setdefault(key, torch.zeros(f.shape, dtype=f.tensor.dtype))
            count = written.setdefault(key, torch.zeros(f.shape, dtype=torch.int64))
            target.view(-1)[f.offset : f.offset + f.tensor.numel()] = f.tensor
            count.view(-1)[f.offset : f.offset + f.tensor.numel()] += 1
    assert all(bool((count == 1).all()) for count in written.values())
    return whole


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of any element; the names must be the same."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a), default=0.0)


def _copy(f: Fragment) -> Fragment:
    return Fragment(f.name, f.field, f.shape, f.offset, f.tensor.clone())
