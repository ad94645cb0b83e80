"""The games and bottlenecks of the first stage: each is the same on two ranks, and survives a restart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.distributed.process import start
from pipeline.losses.adversarial import gradient_penalty
from pipeline.models.discriminator import FeatureDiscriminatorConfig, ResidualDiscriminatorConfig
from pipeline.quantizers.kl import KlConfig
from pipeline.stages.autoencoder import AutoencoderStageConfig
from tests.checkpoint.saving import save_now
from tests.formula import save_vgg16
from tests.ranks import run_ranks
from tests.stages.small_stages import (
    batch_of,
    largest_error,
    make_stage,
    masters,
    stage_config,
    train,
)


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


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Formula weights in the place of the trained ones."""
    return save_vgg16(tmp_path_factory.mktemp("vgg") / "vgg16.pth")


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


@pytest.mark.parametrize("engine", ["accelerate", "zero3"])
def test_a_judge_of_frozen_features_plays_and_its_checkpoint_holds_the_heads_alone(
    engine: str, vgg_file: Path, tmp_path: Path
) -> None:
    config = with_game(discriminator=FeatureDiscriminatorConfig(file=vgg_file, channels=8))
    stage = make_stage(config, engine)
    assert stage.game
    frozen = [buffer.clone() for buffer in stage.game.engine.module.trunk.buffers()]
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = masters(stage)
    row = stage.train_step(batch_of(images), 0, 0, 1000)
    assert float(row["adaptive_weight"]) > 0 and np.isfinite(float(row["discriminator_loss"]))
    assert all(torch.equal(a, b) for a, b in zip(frozen, stage.game.engine.module.trunk.buffers(), strict=True))
    heads = [name for name in before if name.startswith("discriminator.heads")]
    assert any(not np.array_equal(masters(stage)[name], before[name]) for name in heads)
    save_now(CheckpointStore(tmp_path, start()), {}, stage.parts())
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 10e6  # VGG16 would be 59 MB


def test_a_judge_without_its_features_is_refused(tmp_path: Path) -> None:
    config = with_game(discriminator=FeatureDiscriminatorConfig(file=tmp_path / "none.pth"))
    with pytest.raises(UserError, match="none.pth: no such file; put torchvision's VGG16 there, or take kind: patch"):
        make_stage(config)


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
    stage = make_stage(KL, engine)
    rows = train(stage, range(3), start())
    return masters(stage), rows


def test_a_kl_autoencoder_draws_by_sample_so_ranks_do_not_matter() -> None:
    alone, rows = kl_trained("zero2")
    whole = {name.rpartition(".")[0]: tensor for name, tensor in alone.items()}
    assert rows[0]["kl_loss"] > 0 and "batch_perplexity" not in rows[0]
    for pieces, _ in run_ranks(kl_trained, 2, "zero2"):
        assert largest_error(pieces, whole) < 1e-5
