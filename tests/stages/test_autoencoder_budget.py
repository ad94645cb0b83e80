"""What a step of the first stage may cost: what it sends to other ranks, and how often it waits for the device."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.data.transforms import to_model
from pipeline.distributed.process import start
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.discriminator import build_discriminator
from pipeline.quantizers import QuantizerConfig
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.kl import KlConfig
from pipeline.quantizers.lattice import FsqConfig, LfqConfig
from pipeline.quantizers.residual import ResidualConfig
from pipeline.quantizers.simvq import SimVqConfig
from pipeline.stages.autoencoder import AutoencoderStage
from tests.formula import save_vgg16
from tests.ranks import run_ranks
from tests.stages.small_stages import MOVING, batch_of, global_images, make_stage, stage_config, train
from tests.stages.waits import waits_of


def waits_of_a_step(stage: AutoencoderStage) -> Counter[str]:
    """Of the second step: the first places the codes."""
    train(stage, range(1), start())
    batch = batch_of(global_images(1))
    return waits_of(lambda: stage.train_step(batch, 1, 0, 1000))


NORMS = {"finite_norm": 2}
"""A norm for each engine decides on the host whether it steps, or skips a gradient that is not finite."""
QUANTIZERS: dict[str, QuantizerConfig] = {
    "cosine": GradientCodebookConfig(num_codes=16, entropy_weight=0.1),
    "ema": MOVING,
    "simvq": SimVqConfig(num_codes=16),
    "residual": ResidualConfig(num_stages=2, stage=EmaCodebookConfig(num_codes=16)),
    "fsq": FsqConfig(levels=(5, 4, 3, 4)),
    "lfq": LfqConfig(num_codes=16, entropy_weight=0.1),
    "kl": KlConfig(),
}


@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_a_step_waits_for_the_device_at_the_two_gradient_norms_alone(name: str) -> None:
    assert waits_of_a_step(make_stage(stage_config(start_step=0, quantizer=QUANTIZERS[name]))) == NORMS


def test_neither_the_perceptual_distance_nor_lecam_waits(tmp_path: Path) -> None:
    config = stage_config(start_step=0)
    assert config.adversarial
    seen = ReconstructionConfig(perceptual_weight=1.0, perceptual_file=save_vgg16(tmp_path / "vgg16.pth"))
    game = config.adversarial.model_copy(update={"lecam_weight": 0.1})
    stage = make_stage(config.model_copy(update={"reconstruction": seen, "adversarial": game}))
    assert waits_of_a_step(stage) == NORMS


class Reductions(TorchDispatchMode):
    """How many numbers each reduction over ranks sends, but those of a single number (norms, flags)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "reduce" in func.overloadpacket.__name__:
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            self.sizes += [tensor.numel() for tensor in tensors if tensor.numel() > 1]
        return func(*args, **(kwargs or {}))


def reduced_in_each_turn(engine: str) -> tuple[list[int], list[int]]:
    process = start()
    stage = make_stage(stage_config(start_step=0), engine)
    assert stage.game
    train(stage, range(1), process)
    images = to_model(global_images(1)[process.rank :: process.world_size])
    with Reductions() as of_generator:
        restored, _ = stage.generator_turn(images, 1, 1e-3)
    with Reductions() as of_discriminator:
        stage.game.turn(images, restored, 1, 1e-3)
    return of_generator.sizes, of_discriminator.sizes


def reduced_on(engines: list[str]) -> dict[str, tuple[list[int], list[int]]]:
    return {engine: reduced_in_each_turn(engine) for engine in engines}


@pytest.mark.parametrize("engines", [["accelerate"], pytest.param(["zero2", "zero3"], marks=pytest.mark.slow)])
def test_each_turn_reduces_the_gradients_of_its_own_model_and_nothing_twice(engines: list[str]) -> None:
    """The generator's turn: lambda's two gradients, its own weights', the use of 16 codes; then the discriminator's."""
    config = stage_config(start_step=0)
    assert config.adversarial
    model, critic = Autoencoder(config.model), build_discriminator(config.adversarial.discriminator)
    ours, theirs = (sum(p.numel() for p in module.parameters()) for module in (model, critic))
    for_lambda = 2 * model.decoder.conv_out.weight.numel()
    for results in run_ranks(reduced_on, 2, engines):
        for engine, sizes in results.items():
            share = 2 if engine == "zero3" else 1  # scattered: each of the two ranks gets its half, rounded up
            assert sizes == ([for_lambda, -(-ours // share), 16], [-(-theirs // share)]), engine
