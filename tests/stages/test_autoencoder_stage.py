"""The first stage against a plain-torch VQGAN step, on every engine and over ranks; its turns; going on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint.store import CheckpointStore
from pipeline.data.transforms import to_model
from pipeline.distributed.process import start
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.discriminator import Discriminator, build_discriminator
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.kl import KlConfig
from tests.checkpoint.saving import save_now
from tests.ranks import run_ranks
from tests.stages.plain_vqgan import plain_vqgan
from tests.stages.small_stages import (
    ENGINES,
    GLOBAL_BATCH,
    GRADIENT,
    MOVING,
    batch_of,
    global_images,
    largest_error,
    make_stage,
    masters,
    stage_config,
    train,
)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_leaf_method_equals_plain_torch(engine: str) -> None:
    config = stage_config()
    expected, lambdas = plain_vqgan(config, 3)
    stage = make_stage(config, engine)
    rows = train(stage, range(3), start())
    assert largest_error(masters(stage), expected) < 1e-6
    assert [row["adaptive_weight"] for row in rows[1:]] == pytest.approx(lambdas, rel=1e-4)


def trained_over_ranks(engine: str, quantizer: object) -> tuple[dict[str, np.ndarray], list[float], dict[str, float]]:
    """Weights, lambdas and validation of a short run; one batch of the validation is empty on the second rank."""
    process = start()
    stage = make_stage(stage_config(quantizer=quantizer), engine)
    rows = train(stage, range(4), process)
    mine = global_images(99, count=3)[process.rank :: process.world_size]
    validation = stage.validate([batch_of(mine[:1]), batch_of(mine[1:])])
    validation |= {f"latent_mean_{i}": float(value) for i, value in enumerate(stage.model.latent_mean)}
    validation |= {f"latent_std_{i}": float(value) for i, value in enumerate(stage.model.latent_std)}
    return masters(stage), [row["adaptive_weight"] for row in rows[1:]], validation


@pytest.mark.parametrize(("engine", "quantizer"), [("zero2", GRADIENT), ("accelerate", MOVING)], ids=["zero2", "ddp"])
def test_two_ranks_equal_one(engine: str, quantizer: object) -> None:
    alone, lambdas, validation = trained_over_ranks(engine, quantizer)
    whole = {name.rpartition(".")[0]: tensor for name, tensor in alone.items()}
    for pieces, weights, values in run_ranks(trained_over_ranks, 2, engine, quantizer):
        assert weights == pytest.approx(lambdas, rel=1e-4)
        assert largest_error(pieces, whole) < 1e-5
        assert values == pytest.approx(validation, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3", "accelerate"])
def test_four_ranks_have_the_lambda_of_one(engine: str) -> None:
    _, lambdas, validation = trained_over_ranks(engine, GRADIENT)
    for _, weights, values in run_ranks(trained_over_ranks, 4, engine, GRADIENT):
        assert weights == pytest.approx(lambdas, rel=1e-4)
        assert values == pytest.approx(validation, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_every_number_that_can_be_trained_is_trained_by_one_engine(engine: str) -> None:
    config = stage_config(start_step=0)
    stage = make_stage(config, engine)
    assert stage.game and config.adversarial
    models = Autoencoder(config.model), build_discriminator(config.adversarial.discriminator)
    train(stage, range(1), start())
    for model, own in zip(models, (stage.generator, stage.game.engine), strict=True):
        trained: Counter[str] = Counter()
        for piece in own.pieces:
            trained[piece.name] += piece.master.numel()
            assert "bias" in piece.name or piece.exp_avg.any(), piece.name
        assert trained == {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert not any(parameter.requires_grad for parameter in stage.reconstruction.parameters())


def test_discriminator_is_neither_called_nor_changed_before_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(stage_config(start_step=2))
    calls: list[int] = []
    forward = Discriminator.forward
    monkeypatch.setattr(Discriminator, "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1])
    before = masters(stage)
    for step in range(2):
        train(stage, range(step, step + 1), start())
    unchanged = masters(stage)
    assert not calls
    assert all(np.array_equal(unchanged[name], before[name]) for name in before if name.startswith("discriminator"))
    rows = train(stage, range(2, 3), start())
    assert calls == [GLOBAL_BATCH, 2 * GLOBAL_BATCH]  # the generator's turn, then both kinds in one batch
    assert any(not np.array_equal(masters(stage)[n], before[n]) for n in before if n.startswith("discriminator"))
    assert {"generator_loss", "discriminator_loss", "adaptive_weight"} <= set(rows[0])


def test_each_turn_leaves_the_other_model_alone() -> None:
    stage = make_stage(stage_config(start_step=0))
    assert stage.game
    x = to_model(global_images(0))
    before = masters(stage)
    restored, _ = stage.generator_turn(x, 0, 1e-3)
    after = masters(stage)
    assert all(np.array_equal(after[n], before[n]) == n.startswith("discriminator") for n in before if "bias" not in n)
    assert all(p.grad is None or not p.grad.any() for p in stage.game.engine.module.parameters())
    assert all(p.requires_grad for p in stage.game.engine.module.parameters())
    stage.game.turn(x, restored, 0, 1e-3)
    assert all(np.array_equal(masters(stage)[n], after[n]) for n in after if n.startswith("autoencoder"))
    assert all(p.grad is None or not p.grad.any() for p in stage.model.parameters())


@pytest.mark.parametrize("engine", ["accelerate", "zero2"])
def test_an_interrupted_run_equals_an_uninterrupted_one(engine: str, tmp_path: Path) -> None:
    config = stage_config(start_step=1, quantizer=MOVING)
    whole = make_stage(config, engine)
    expected = train(whole, range(4), start())
    first = make_stage(config, engine)
    train(first, range(2), start())
    save_now(CheckpointStore(tmp_path, start()), {}, first.parts())
    second = make_stage(config, engine)
    assert CheckpointStore(tmp_path, start()).restore(second.parts()) is not None
    assert train(second, range(2, 4), start()) == expected[2:]
    assert all(np.array_equal(a, masters(second)[name]) for name, a in masters(whole).items())
    assert all(torch.equal(a, b) for a, b in zip(whole.model.buffers(), second.model.buffers(), strict=True))


def test_loss_falls_on_a_batch_seen_again_and_again() -> None:
    stage = make_stage(stage_config(start_step=None, quantizer=EmaCodebookConfig(num_codes=16, start_step=5)))
    batch = batch_of(global_images(0) // 64 * 64)
    losses = [float(stage.train_step(batch, step, 0, 1000)["l1_loss"]) for step in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_checkpointing_changes_no_bit() -> None:
    plain, lean = (
        make_stage(stage_config()),
        make_stage(stage_config().model_copy(update={"gradient_checkpointing": True})),
    )
    assert train(plain, range(2), start()) == train(lean, range(2), start())
    assert all(np.array_equal(a, masters(lean)[name]) for name, a in masters(plain).items())


CONTINUOUS = KlConfig(kl_weight=0.1)


def five_steps(engine: str, precision: str, quantizer: object) -> dict[str, np.ndarray]:
    stage = make_stage(stage_config(start_step=0, quantizer=quantizer), engine, precision)
    train(stage, range(5), start())
    return masters(stage)


def on_every_engine(precision: str, quantizer: object) -> dict[str, dict[str, np.ndarray]]:
    return {engine: five_steps(engine, precision, quantizer) for engine in ENGINES}


def movement_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], quantizer: object) -> float:
    """Root mean square error of all weights over how far they moved from the start."""
    begun, _ = plain_vqgan(stage_config(start_step=0, quantizer=quantizer), 0)
    wrong = sum(float(np.square(found[name] - weights).sum()) for name, weights in expected.items())
    moved = sum(float(np.square(weights - begun[name]).sum()) for name, weights in expected.items())
    return (wrong / moved) ** 0.5


@pytest.mark.slow
def test_five_steps_of_two_ranks_equal_plain_torch_on_every_engine() -> None:
    expected, _ = plain_vqgan(stage_config(start_step=0), 5)
    for engines in run_ranks(on_every_engine, 2, "fp32", GRADIENT):
        for engine, pieces in engines.items():
            assert largest_error(pieces, expected) < 1e-6, engine


def test_bf16_is_plain_autocast_bit_for_bit() -> None:
    config = stage_config(start_step=0)
    expected, _ = plain_vqgan(config, 2, "bf16", num_parts=1)
    stage = make_stage(config, "zero2", "bf16")
    train(stage, range(2), start())
    assert largest_error(masters(stage), expected) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [GRADIENT, CONTINUOUS], ids=lambda quantizer: quantizer.kind)
def test_bf16_of_two_ranks_equals_plain_autocast_on_every_engine(quantizer: object) -> None:
    expected, _ = plain_vqgan(stage_config(start_step=0, quantizer=quantizer), 5, "bf16", num_parts=2)
    for engines in run_ranks(on_every_engine, 2, "bf16", quantizer):
        for engine, pieces in engines.items():
            assert largest_error(pieces, expected) < 1e-6, engine


@pytest.mark.parametrize(("quantizer", "bound"), [(GRADIENT, 0.6), (CONTINUOUS, 0.2)], ids=["codes", "continuous"])
def test_bf16_is_as_near_to_fp32_by_the_leaf_method_as_written(quantizer: object, bound: float) -> None:
    """After five steps, in shares of the way that the weights went; among codes a rounding may choose another one."""
    config = stage_config(start_step=0, quantizer=quantizer)
    exact, _ = plain_vqgan(config, 5)
    errors = [
        movement_error(plain_vqgan(config, 5, "bf16", num_parts)[0], exact, quantizer) for num_parts in (None, 1, 2)
    ]
    assert max(errors) < bound and max(errors) < 1.1 * errors[0]
