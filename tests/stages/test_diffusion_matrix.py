"""The second stage on every engine, ZeRO stage, precision and number of ranks: one training, one set of draws."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.distributed import process as processes
from pipeline.distributed.ema import EmaConfig
from pipeline.distributed.ema_profile import decay_of, exponent_of
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import Process
from pipeline.optim import OptimConfig
from pipeline.stages.diffusion import DiffusionStage
from tests.distributed.toys import assemble, distance
from tests.ranks import run_ranks
from tests.stages.test_diffusion import CONFIG, batch, first_stage

WIDTH, DECAY = 0.1, 0.9
STAGE = CONFIG.model_copy(update={"ema": EmaConfig(decay=DECAY, power_widths=(WIDTH,)), "offset_noise": 0.1})
OPTIM = OptimConfig(learning_rate=2e-3, eps=1e-3)  # a large eps: Adam would turn the last bits of a gradient into steps
ENGINES: dict[str, dict[str, Any]] = {
    "accelerate": {"kind": "accelerate"},
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3, "persistence_threshold": 0},
}
VARIANTS = [(engine, precision) for precision in ("fp32", "bf16") for engine in ENGINES]
GLOBAL_BATCH, STEPS = 4, 3


def train(engine: str, precision: str, process: Process) -> dict[str, Any]:
    """Three steps of one variant: losses, gathered weights, and how far both averages are from gathered ones."""
    config = EngineConfig(**ENGINES[engine], precision=precision, clip_norm=1.0)
    stage = DiffusionStage(STAGE, config, OPTIM, process, 5, first_stage())
    averages = {"unet_ema": stage.ema, **stage.tracks}
    names = [f"param/{name}" for name, parameter in stage.model.named_parameters() if parameter.requires_grad]
    gathered = {part: {n: t for n, t in assemble(stage.engine).items() if n in names} for part in averages}
    losses = []
    for step in range(STEPS):
        first = GLOBAL_BATCH * step
        mine = batch(list(range(first, first + GLOBAL_BATCH))[process.rank :: process.world_size])
        loss = stage.train_step(mine, step, first, GLOBAL_BATCH * STEPS)["diffusion_loss"]
        losses.append(processes.mean_of_floats([float(loss)])[0])
        weights = assemble(stage.engine)
        decays = {"unet_ema": min(DECAY, (1 + step) / (10 + step)), f"unet_ema_{WIDTH}": power(step)}
        for part, tensors in gathered.items():
            for name, tensor in tensors.items():
                tensor.lerp_(weights[name], 1.0 - decays[part])
    return {
        "losses": losses,
        "weights": {name: tensor for name, tensor in weights.items() if name in names},
        "ema": {part: distance(renamed(assemble(averages[part])), gathered[part]) for part in averages},
    }


def power(step: int) -> float:
    return decay_of(exponent_of(WIDTH), step + 1)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("ema/", "param/"): tensor for name, tensor in tensors.items()}


def draws(process: Process) -> dict[int, tuple[Tensor, Tensor, bool]]:
    """Noise, timestep and caption drop of eight samples, from the ranks that train on them."""
    stage = DiffusionStage(STAGE, EngineConfig(kind="accelerate"), OPTIM, process, 5, first_stage())
    mine = batch(list(range(8))[process.rank :: process.world_size], epoch=2)
    own = zip(stage._noise(mine, (4, 8, 8)), stage._timesteps(mine), stage._dropped(mine), strict=True)
    return dict(zip(mine.sample_ids, own, strict=True))


def body(variants: list[tuple[str, str]]) -> bytes:
    """Pickled here: a pipe would pass tensors as handles, which end with this process."""
    process = processes.start()
    return pickle.dumps(({variant: train(*variant, process) for variant in variants}, draws(process)))


@pytest.fixture(scope="module")
def worlds() -> dict[int, tuple[dict[tuple[str, str], Any], dict[int, Any]]]:
    """Results by world size; draws of all its ranks together."""
    found = {}
    for world_size, variants in ((1, VARIANTS), (2, VARIANTS), (4, [("accelerate", "fp32"), ("zero2", "fp32")])):
        ranks = [pickle.loads(result) for result in run_ranks(body, world_size, variants, timeout_seconds=900)]
        found[world_size] = ranks[0][0], {sample: d for _, own in ranks for sample, d in own.items()}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("engine", "precision"), VARIANTS)
def test_every_engine_trains_alike(worlds: dict, engine: str, precision: str, world_size: int) -> None:
    trained = worlds[world_size][0]
    one, reference = trained[engine, precision], trained["accelerate", precision]
    assert one["losses"] == pytest.approx(reference["losses"], rel=1e-5)
    assert distance(one["weights"], reference["weights"]) <= 1e-6
    assert one["ema"] == {"unet_ema": 0.0, f"unet_ema_{WIDTH}": 0.0}


@pytest.mark.slow
def test_every_number_of_ranks_trains_alike(worlds: dict) -> None:
    reference = worlds[1][0]["accelerate", "fp32"]
    for world_size, engine in ((2, "zero2"), (2, "zero3"), (4, "accelerate"), (4, "zero2")):
        one = worlds[world_size][0][engine, "fp32"]
        assert one["losses"] == pytest.approx(reference["losses"], rel=1e-5)
        assert distance(one["weights"], reference["weights"]) <= 1e-6
    low = worlds[1][0]["accelerate", "bf16"]
    assert distance(low["weights"], reference["weights"]) > 1e-6  # the precision is really another


@pytest.mark.slow
def test_draws_belong_to_samples_and_not_to_ranks(worlds: dict) -> None:
    alone = worlds[1][1]
    assert len(alone) == 8
    for world_size in (2, 4):
        for sample, (noise, t, dropped) in worlds[world_size][1].items():
            assert torch.equal(noise, alone[sample][0]) and torch.equal(t, alone[sample][1])
            assert dropped == alone[sample][2]
    noises = torch.stack([noise for noise, _, _ in alone.values()]).flatten(1)
    similar = torch.corrcoef(noises) - torch.eye(8)
    assert similar.abs().max() < 0.35  # 256 numbers each: 1 / 16 is one standard deviation
    assert len({int(t) for _, t, _ in alone.values()}) > 4
