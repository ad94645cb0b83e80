"""The first stage against a plain-torch VQGAN step, on every engine and over ranks; its turns, its validation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.transforms import to_model, to_uint8
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import Process, start
from pipeline.evaluate.reconstruction import psnr
from pipeline.losses.adversarial import gradient_penalty
from pipeline.losses.reconstruction import ReconstructionConfig
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.discriminator import Discriminator, DiscriminatorConfig, ResidualDiscriminatorConfig
from pipeline.optim import OptimConfig, build_optimizer
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.kl import KlConfig
from pipeline.stages.autoencoder import AdversarialConfig, AutoencoderStage, AutoencoderStageConfig
from pipeline.stages.autoencoder.collapse import PATIENCE_STEPS, CollapseAlarm
from tests.checkpoint.saving import save_now
from tests.ranks import run_ranks

ENGINES = {
    "accelerate": EngineConfig(kind="accelerate"),
    "zero0": EngineConfig(zero_stage=0),
    "zero1": EngineConfig(zero_stage=1),
    "zero2": EngineConfig(zero_stage=2),
    "zero3": EngineConfig(zero_stage=3, persistence_threshold=0),
}
OPTIM = OptimConfig(learning_rate=1e-3, eps=1e-3)  # a large eps keeps rounding from flipping steps of tiny gradients
GRADIENT, MOVING = GradientCodebookConfig(num_codes=16), EmaCodebookConfig(num_codes=16, revive_every_steps=2)
GLOBAL_BATCH = 4


def stage_config(start_step: int | None = 1, quantizer: object = GRADIENT) -> AutoencoderStageConfig:
    model = AutoencoderConfig(
        channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        norm_groups=2,
        latent_channels=4,
        embedding_dim=4,
        resolution=16,
        quantizer=quantizer,
    )
    game = None
    if start_step is not None:
        shape = DiscriminatorConfig(channels=8, num_layers=2, norm_groups=2)
        game = AdversarialConfig(weight=0.75, start_step=start_step, discriminator=shape, optim=OPTIM)
    return AutoencoderStageConfig(
        model=model, reconstruction=ReconstructionConfig(l2_weight=0.5, perceptual_weight=0), adversarial=game
    )


def make_stage(config: AutoencoderStageConfig, engine: str = "accelerate") -> AutoencoderStage:
    return AutoencoderStage(config, ENGINES[engine], OPTIM, start(), seed=3)


def batch_of(images: Tensor) -> Batch:
    count = len(images)
    return Batch(list(range(count)), [0] * count, [""] * count, [""] * count, images=images)


def global_images(step: int, count: int = GLOBAL_BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def train(stage: AutoencoderStage, steps: range, process: Process) -> list[dict[str, float]]:
    """Metrics of each step on this rank's part of the global batches."""
    rows = []
    for step in steps:
        images = global_images(step)[process.rank :: process.world_size]  # as the loader deals them
        metrics = stage.train_step(batch_of(images), step, step * GLOBAL_BATCH, 1000)
        rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def masters(stage: AutoencoderStage) -> dict[str, np.ndarray]:
    """Every piece of the weights of both engines that this rank holds, by engine, name and offset."""
    engines = [stage.generator, *([stage.game.engine] if stage.game else [])]
    return {f"{e.name}.{p.name}.{p.offset}": p.master.numpy().copy() for e in engines for p in e.pieces}


def plain_vqgan(config: AutoencoderStageConfig, steps: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Equation by equation, lambda by autograd on the last weight itself: the weights and the lambdas."""
    assert config.adversarial
    model, critic = Autoencoder(config.model, 3), Discriminator(config.adversarial.discriminator, 3)
    optimizers = build_optimizer(OPTIM, model), build_optimizer(OPTIM, critic)
    lambdas = []
    for step in range(steps):
        x = to_model(global_images(step))
        result = model(x)
        nll = F.l1_loss(result.images, x) + 0.5 * F.mse_loss(result.images, x)
        loss = nll + sum(result.quantized.losses.values())
        if step >= config.adversarial.start_step:
            game = -critic(result.images).mean()
            weight = model.decoder.conv_out.weight
            of_nll, of_game = (torch.autograd.grad(term, weight, retain_graph=True)[0].norm() for term in (nll, game))
            lambdas.append((of_nll / (of_game + 1e-4)).item())
            loss = loss + config.adversarial.weight * lambdas[-1] * game
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        if step >= config.adversarial.start_step:
            optimizers[1].zero_grad()
            real, fake = critic(x), critic(result.images.detach())
            (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
            optimizers[1].step()
    named = [*((f"autoencoder.{n}", p) for n, p in model.named_parameters())]
    named += [(f"discriminator.{n}", p) for n, p in critic.named_parameters()]
    return {name: parameter.detach().flatten().numpy() for name, parameter in named}, lambdas


def largest_error(pieces: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> float:
    errors = []
    for name, piece in pieces.items():
        parameter, _, offset = name.rpartition(".")
        expected = whole[parameter][int(offset) : int(offset) + len(piece)]
        errors.append(np.abs(piece - expected).max(initial=0.0))
    return max(errors)


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
    return masters(stage), [row["adaptive_weight"] for row in rows[1:]], validation


@pytest.mark.parametrize(("engine", "quantizer"), [("zero2", GRADIENT), ("accelerate", MOVING)], ids=["zero2", "ddp"])
def test_two_ranks_equal_one(engine: str, quantizer: object) -> None:
    alone, lambdas, validation = trained_over_ranks(engine, quantizer)
    whole = {name.rpartition(".")[0]: tensor for name, tensor in alone.items()}
    for pieces, weights, values in run_ranks(trained_over_ranks, 2, engine, quantizer):
        assert weights == pytest.approx(lambdas, rel=1e-4)
        assert largest_error(pieces, whole) < 1e-5
        assert values == pytest.approx(validation, rel=1e-4)


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


def test_a_broken_discriminator_cannot_reach_the_autoencoder_before_its_step() -> None:
    stage = make_stage(stage_config(start_step=5))
    assert stage.game
    with torch.no_grad():
        next(stage.game.engine.module.parameters()).fill_(torch.nan)
    (row,) = train(stage, range(1), start())
    assert np.isfinite(list(row.values())).all()


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


@pytest.mark.parametrize("engine", ["accelerate", "zero3"])
def test_validation_is_the_brute_force_over_the_averaged_weights(engine: str) -> None:
    stage = make_stage(stage_config(start_step=None, quantizer=MOVING), engine)
    train(stage, range(3), start())
    images = global_images(99, count=7)
    measured = stage.validate([batch_of(images[:4]), batch_of(images[4:]), batch_of(images[:0])])
    with stage.ema.applied(), torch.no_grad():
        result = stage.generator(to_model(images))
    assert measured["validation_psnr"] == pytest.approx(psnr(to_uint8(result.images), images).mean().item(), abs=1e-3)
    assert measured["validation_codebook_usage"] == len(result.quantized.codes.unique()) / 16
    vectors = result.latent.transpose(0, 1).flatten(1)
    assert torch.allclose(stage.model.latent_mean, vectors.mean(1), atol=1e-4)
    assert torch.allclose(stage.model.latent_std, vectors.std(1, correction=0), atol=1e-4)
    assert -1 < measured["validation_ssim"] < 1
    assert 1 <= measured["validation_codebook_perplexity"] <= 16


def test_a_collapsed_codebook_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    stage = make_stage(stage_config(start_step=None, quantizer=GradientCodebookConfig(num_codes=16, cosine=False)))
    with torch.no_grad():  # one code among the latents, the others far away
        stage.model.quantize.embedding.weight.fill_(1e3)[0] = 0.0
    stage.ema.averages = [master.clone() for master in stage.ema.masters]
    stage.validate([batch_of(global_images(0))])
    assert "6.2 % of the codes in use" in caplog.text


def test_preview_shows_pictures_above_reconstructions() -> None:
    stage = make_stage(stage_config(start_step=None))
    train(stage, range(1), start())
    picture = stage.preview()
    assert picture.shape == (32, 4 * 16, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture[:16, 16:32], global_images(0)[1].permute(1, 2, 0).numpy())


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


def test_a_spoilt_weight_is_named_with_its_layer() -> None:
    stage = make_stage(stage_config(start_step=0))
    batch = batch_of(global_images(0))
    assert stage.where_not_finite(batch) is None
    with torch.no_grad():
        stage.model.decoder.up[1].block[0].conv2.bias[0] = torch.inf
    assert stage.where_not_finite(batch) == "autoencoder.decoder.up.1.block.0.conv2"
    assert stage.game
    spoilt = make_stage(stage_config(start_step=0))
    assert spoilt.game
    with torch.no_grad():
        spoilt.game.engine.module.main[2].weight[0] = torch.nan
    assert spoilt.where_not_finite(batch) == "discriminator.main.2"
    (row,) = train(spoilt, range(1), start())
    assert np.isnan(row["generator_loss"])  # the term that the trainer stops at


def test_a_collapse_is_said_while_training_and_is_a_metric(caplog: pytest.LogCaptureFixture) -> None:
    alarm = CollapseAlarm()
    used, fallen = torch.full((100,), 4.0), torch.eye(100)[0] * 400
    assert alarm.look(used, 0)["codebook_balance"] == pytest.approx(1.0)
    rows = [alarm.look(fallen, step) for step in range(PATIENCE_STEPS - 1)]
    assert not caplog.text and rows[-1]["codebook_balance"] == pytest.approx(0.01)
    alarm.look(fallen, PATIENCE_STEPS - 1)
    assert "the codebook is collapsing: perplexity 1.0 of 100 codes" in caplog.text


def test_codes_that_are_not_in_use_yet_raise_no_alarm() -> None:
    waiting = EmaCodebookConfig(num_codes=16, start_step=2)
    rows = train(make_stage(stage_config(None, waiting)), range(4), start())
    assert ["codebook_balance" in row for row in rows] == [False, False, False, True]


def with_game(**options: object) -> AutoencoderStageConfig:
    config = stage_config(start_step=0)
    assert config.adversarial
    return config.model_copy(update={"adversarial": config.adversarial.model_copy(update=options)})


GAMES = {
    "non-saturating": with_game(loss="non_saturating"),
    "lecam": with_game(lecam_weight=0.5),
    "r1": with_game(r1_weight=1.0, r1_every_steps=2),
    "residual": with_game(discriminator=ResidualDiscriminatorConfig(channels=4, num_blocks=1)),
}


def played(name: str, engine: str) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    process = start()
    stage = make_stage(GAMES[name], engine)
    rows = train(stage, range(3), process)
    return masters(stage), rows


def all_played(engine: str) -> dict[str, tuple[dict[str, np.ndarray], list[dict[str, float]]]]:
    return {name: played(name, engine) for name in GAMES}


def test_every_game_is_the_same_on_two_ranks() -> None:
    alone = all_played("zero2")
    for results in run_ranks(all_played, 2, "zero2"):
        for name, (pieces, rows) in results.items():
            whole = {key.rpartition(".")[0]: tensor for key, tensor in alone[name][0].items()}
            assert largest_error(pieces, whole) < 1e-5, name
            assert rows[-1]["adaptive_weight"] == pytest.approx(alone[name][1][-1]["adaptive_weight"], rel=1e-4), name
    assert all(row["lecam_loss"] > 0 for row in alone["lecam"][1])
    assert [row["r1_loss"] > 0 for row in alone["r1"][1]] == [True, False, True]


def test_r1_is_the_slope_at_pictures_and_trains_the_discriminator() -> None:
    critic = torch.nn.Conv2d(3, 1, 16)  # one logit; its slope is its weight
    penalty = gradient_penalty(critic, torch.rand(2, 3, 16, 16))
    assert penalty.item() == pytest.approx(0.5 * critic.weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    assert torch.allclose(critic.weight.grad, critic.weight, atol=1e-6)


def test_r1_is_refused_where_weights_are_partitioned() -> None:
    with pytest.raises(UserError, match="use stage 2, or 0"):
        make_stage(GAMES["r1"], "zero3")


def test_lecam_averages_survive_a_restart(tmp_path: Path) -> None:
    whole = make_stage(GAMES["lecam"])
    expected = train(whole, range(4), start())
    first, second = make_stage(GAMES["lecam"]), make_stage(GAMES["lecam"])
    train(first, range(2), start())
    save_now(CheckpointStore(tmp_path, start()), {}, first.parts())
    CheckpointStore(tmp_path, start()).restore(second.parts())
    assert train(second, range(2, 4), start()) == expected[2:]


KL = stage_config(start_step=1, quantizer=KlConfig(kl_weight=0.1))


def kl_trained(engine: str) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    process = start()
    stage = make_stage(KL, engine)
    rows = []
    for step in range(3):
        part = slice(process.rank, None, process.world_size)
        ids = list(range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH))[part]
        batch = Batch(ids, [0] * len(ids), [""] * len(ids), [""] * len(ids), images=global_images(step)[part])
        rows.append({k: float(v) for k, v in stage.train_step(batch, step, 0, 1000).items()})
    return masters(stage), rows


def test_a_kl_autoencoder_draws_by_sample_so_ranks_do_not_matter() -> None:
    alone, rows = kl_trained("zero2")
    whole = {name.rpartition(".")[0]: tensor for name, tensor in alone.items()}
    assert rows[0]["kl_loss"] > 0 and "batch_perplexity" not in rows[0]
    for pieces, _ in run_ranks(kl_trained, 2, "zero2"):
        assert largest_error(pieces, whole) < 1e-5


def test_gradient_checkpointing_changes_no_bit() -> None:
    plain, lean = (
        make_stage(stage_config()),
        make_stage(stage_config().model_copy(update={"gradient_checkpointing": True})),
    )
    assert train(plain, range(2), start()) == train(lean, range(2), start())
    assert all(np.array_equal(a, masters(lean)[name]) for name, a in masters(plain).items())


def five_steps(engine: str) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    stage = make_stage(stage_config(start_step=0), engine)
    rows = train(stage, range(5), start())
    return masters(stage), rows


def on_every_engine() -> dict[str, dict[str, np.ndarray]]:
    return {engine: five_steps(engine)[0] for engine in ENGINES}


@pytest.mark.slow
def test_five_steps_of_two_ranks_equal_plain_torch_on_every_engine() -> None:
    expected, _ = plain_vqgan(stage_config(start_step=0), 5)
    for engines in run_ranks(on_every_engine, 2):
        for engine, pieces in engines.items():
            assert largest_error(pieces, expected) < 1e-6, engine
