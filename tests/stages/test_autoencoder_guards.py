"""What a first stage says of itself: validation, preview, codes that collapse, weights that are spoilt."""

import numpy as np
import pytest
import torch

from pipeline.data.transforms import to_model, to_uint8
from pipeline.distributed.process import start
from pipeline.evaluate.reconstruction import psnr
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.stages.autoencoder.collapse import PATIENCE_STEPS, CollapseAlarm
from tests.stages.small_stages import MOVING, batch_of, global_images, make_stage, stage_config, train


def test_a_broken_discriminator_cannot_reach_the_autoencoder_before_its_step() -> None:
    stage = make_stage(stage_config(start_step=5))
    assert stage.game
    with torch.no_grad():
        next(stage.game.engine.module.parameters()).fill_(torch.nan)
    (row,) = train(stage, range(1), start())
    assert np.isfinite(list(row.values())).all()


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
