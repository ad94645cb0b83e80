"""Figures of an exported UNet: a loss whatever the data shows, the stage's own, and enlargements by their originals."""

from pathlib import Path

import pytest
import torch

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.evaluate.clip_score import ClipScoreMeter
from pipeline.evaluate.denoising import DenoisingMeter
from pipeline.evaluate.fid import FidMeter
from pipeline.evaluate.inception import inception
from pipeline.models.condition import UpscaleConfig
from pipeline.stages.diffusion_evaluation import UNetMeter
from tests.evaluate.test_clip_score import NAME, weights  # noqa: F401 (a fixture)
from tests.formula import formula_tensors
from tests.test_generate import conditioned, generator  # noqa: F401 (a fixture)

CPU = torch.device("cpu")


def batch(sample_ids: list[int], caption: str = "hot beverage") -> Batch:
    draws = torch.Generator().manual_seed(sum(sample_ids))
    images = torch.randint(0, 256, (len(sample_ids), 3, 32, 32), dtype=torch.uint8, generator=draws)
    return Batch(sample_ids, [0] * len(sample_ids), [str(i) for i in sample_ids], [caption] * len(sample_ids), images)


def test_any_data_gives_a_loss_and_shapes_also_give_obedience(generator) -> None:  # type: ignore # noqa: F811
    meter = UNetMeter(generator)
    meter.measure([batch(list(range(8))), batch([8, 9])])
    figures = meter.compute()
    assert set(figures) == {"validation_loss", *(f"validation_loss_at_{i}" for i in range(8))}
    assert figures["validation_loss"] == pytest.approx(sum(figures[f"validation_loss_at_{i}"] for i in range(8)) / 8)
    assert "denoising" in meter.protocol()["name"] and meter.protocol()["sampling"]["num_steps"] == 4
    meter.measure([batch([10], "a small red circle at the left on a white background")])
    assert "caption_accuracy" in meter.compute()


def test_the_loss_does_not_depend_on_the_batches(generator) -> None:  # type: ignore # noqa: F811
    whole, split = UNetMeter(generator), UNetMeter(generator)
    one = batch(list(range(6)))
    whole.measure([one])
    parts = [range(0, 2), range(2, 6)]
    split.measure(
        Batch(list(p), [0] * len(p), [""] * len(p), one.captions[: len(p)], one.images[p.start : p.stop])  # type: ignore
        for p in parts
    )
    assert split.compute() == pytest.approx(whole.compute(), rel=1e-4)


def test_timesteps_are_the_middles_of_eighths() -> None:
    assert DenoisingMeter.timesteps([0, 1, 7, 8], 1000).tolist() == [62, 187, 937, 62]


def test_a_model_that_enlarges_is_judged_by_the_originals() -> None:
    meter = UNetMeter(conditioned(UpscaleConfig(factor=2)))
    meter.measure([batch([0, 1])])
    figures = meter.compute()
    assert {"psnr", "ssim", "psnr_bicubic", "ssim_bicubic", "validation_loss"} <= set(figures)
    assert "enlargement" in meter.protocol()["name"]
    stored = batch([2])
    stored.images, stored.latents = None, torch.zeros(1, 4, 8, 8)
    with pytest.raises(UserError, match="needs pictures"):
        meter.measure([stored])


def test_clip_judges_every_picture(generator, weights) -> None:  # type: ignore # noqa: F811
    one = batch([3, 4])
    meter = UNetMeter(generator, image_size=48, clip=(NAME, str(weights)))
    meter.measure([one])
    judge = ClipScoreMeter(NAME, str(weights), torch.device("cpu"))
    drawn = generator.sample(one.captions, [3, 4], image_size=48)  # one picture for each caption, seeded by its number
    judge.update(torch.from_numpy(drawn).permute(0, 3, 1, 2), one.captions)
    assert meter.compute()["clip_score"] == judge.compute()["clip_score"]
    assert {"drawn", "clip_model", "clip_weights", "clip_pixels", "sampling"} <= set(meter.protocol())


def test_the_frechet_distance_is_one_to_the_pictures_of_the_data(generator, tmp_path: Path) -> None:  # type: ignore # noqa: F811
    torch.save(formula_tensors(inception().state_dict()), tmp_path / "inception.pth")
    one = batch([3, 4])
    meter, judge = (
        UNetMeter(generator, inception_file=tmp_path / "inception.pth"),
        FidMeter(tmp_path / "inception.pth", CPU),
    )
    meter.measure([one])
    assert one.images is not None
    judge.update(torch.from_numpy(generator.sample(one.captions, [3, 4])).permute(0, 3, 1, 2), one.images)
    assert meter.compute()["fid"] == pytest.approx(judge.compute()["fid"]) and judge.compute()["fid"] > 0
    assert len(meter.protocol()["fid_weights"]) == 64
    stored = batch([5])
    stored.images, stored.latents = None, torch.zeros(1, 4, 8, 8)
    with pytest.raises(UserError, match="--fid measures a distance from pictures"):
        meter.measure([stored])
