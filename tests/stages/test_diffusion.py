"""The diffusion stage: learns, drops captions as asked, keys its draws on samples, validates exactly over ranks."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.diffusion.objective import ObjectiveConfig, build_objective
from pipeline.diffusion.sampling import SamplingConfig
from pipeline.distributed import process as processes
from pipeline.distributed.ema import EmaConfig
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import Process
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.condition import InpaintConfig, UpscaleConfig
from pipeline.models.text import NULL_PROMPT, TrainableTextConfig
from pipeline.optim import OptimConfig
from pipeline.stages.diffusion import DiffusionStage, DiffusionStageConfig, in_step
from tests.ranks import run_ranks
from tests.small_models import small_autoencoder, small_unet
from tests.stages.waits import waits_of

CONFIG = DiffusionStageConfig(
    unet=small_unet(),
    text=TrainableTextConfig(width=16, num_layers=1, num_heads=2, context_length=12),
    objective=ObjectiveConfig(prediction="v", min_snr_gamma=5.0),
    sampling=SamplingConfig(num_steps=2, guidance_scale=2.0),
    ema=EmaConfig(decay=0.9),
    preview_prompts=("a red circle", "a blue square"),
)
CAPTIONS = ["a red circle", "a blue square", "a green star"]


def first_stage() -> Autoencoder:
    autoencoder = Autoencoder(small_autoencoder(channel_multipliers=(1, 1, 1), resolution=32), seed=3)
    autoencoder.latent_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    autoencoder.latent_std.copy_(torch.tensor([0.5, 1.5, 1.0, 2.0]))
    return autoencoder


def stage(
    config: DiffusionStageConfig = CONFIG,
    process: Process | None = None,
    seed: int = 5,
    shifts: Sequence[tuple[int, float]] = (),
) -> DiffusionStage:
    engine, optim = EngineConfig(kind="accelerate"), OptimConfig(learning_rate=2e-3)
    return DiffusionStage(config, engine, optim, process or Process(), seed, first_stage(), shifts)


def batch(sample_ids: list[int], epoch: int = 0) -> Batch:
    """Pictures of one colour each, named by their caption."""
    colours = torch.tensor([[[250, 20, 20]], [[20, 20, 250]], [[20, 250, 20]]], dtype=torch.uint8)
    images = torch.stack([colours[i % 3].T[..., None].expand(3, 32, 32) for i in sample_ids]).contiguous()
    captions = [CAPTIONS[i % 3] for i in sample_ids]
    return Batch(sample_ids, [epoch] * len(sample_ids), [str(i) for i in sample_ids], captions, images=images)


def test_learns(single: None) -> None:
    trained = stage()
    before = trained.validate([batch(list(range(16)))])["validation_loss"]
    for step in range(40):
        metrics = trained.train_step(batch(list(range(8 * step, 8 * step + 8))), step, 8 * step, 320)
        assert np.isfinite(float(metrics["diffusion_loss"]))
    after = trained.validate([batch(list(range(16)))])["validation_loss"]
    assert after < 0.8 * before


def test_stored_and_online_latents_train_alike(single: None) -> None:
    online, stored = batch([0, 1, 2, 3]), batch([0, 1, 2, 3])
    with torch.no_grad():
        stored.latents = first_stage().encode_raw(online.images / 127.5 - 1.0)
    stored.images = None
    torch.testing.assert_close(stage().inputs.latents(online), stage().inputs.latents(stored))
    losses = [stage().train_step(b, 0, 0, 8)["diffusion_loss"] for b in (online, stored)]
    torch.testing.assert_close(losses[0], losses[1])


def test_draws_depend_on_sample_and_epoch_only(single: None) -> None:
    whole, part, later = batch([4, 5, 6, 7]), batch([6]), batch([6], epoch=1)
    one = stage()

    def draws(b: Batch) -> list[torch.Tensor]:
        return [one._noise(b, (4, 8, 8)), one._timesteps(b)]

    for all_rows, row, other in zip(draws(whole), draws(part), draws(later), strict=True):
        assert torch.equal(all_rows[2:3], row)
        assert not torch.equal(row, other)


def test_caption_drop_has_its_rate_and_its_prompt(single: None) -> None:
    one = stage()
    many = Batch(list(range(10_000)), [0] * 10_000, [""] * 10_000, [""] * 10_000)
    assert 0.09 < np.mean(one._dropped(many)) < 0.11
    tokens = one.inputs.captions(batch([0, 1]), [True, False])
    assert torch.equal(tokens[:1], one.text.tokenize([NULL_PROMPT]))  # what the generator encodes as its null prompt
    assert torch.equal(tokens[1:], one.text.tokenize([CAPTIONS[1]]))


def test_timesteps_cover_the_schedule(single: None) -> None:
    many = Batch(list(range(20_000)), [0] * 20_000, [""] * 20_000, [""] * 20_000)
    t = stage()._timesteps(many)
    assert t.min() == 0 and t.max() == 999
    assert abs(t.double().mean() - 499.5) < 6


def test_an_earlier_phase_has_its_own_schedule_and_size(single: None) -> None:
    last = CONFIG.model_copy(update={"objective": CONFIG.objective.shifted(2.0)})
    one = stage(last, shifts=[(8, 1.0)])
    plain, shifted = (build_objective(CONFIG.objective.shifted(shift)).schedule.snr for shift in (1.0, 2.0))
    for seen, snr in ((0, plain), (7, plain), (8, shifted), (4, plain)):
        one.train_step(batch([0, 1]), 0, seen, 16)
        assert torch.equal(one.objective.schedule.snr, snr)
    torch.testing.assert_close(plain / shifted, torch.full_like(plain, 4.0))  # arXiv 2301.11093: the ratio squared
    small = one.preview().shape
    large = batch([0, 1])
    assert large.images is not None
    large.images = large.images.repeat_interleave(6, dim=2).repeat_interleave(6, dim=3)  # 192 pixels
    one.train_step(large, 0, 8, 16)
    assert one.preview().shape[1] > small[1]  # two tiles of 192 instead of two of 128


def test_preview_shows_the_averaged_weights(single: None) -> None:
    one = stage()
    first = one.preview()
    assert first.dtype == np.uint8 and first.ndim == 3
    with torch.no_grad():
        one.model.unet.conv_out.bias += 1.0  # the live weights only
    assert np.array_equal(one.preview(), first)


def test_mismatched_latents_are_refused() -> None:
    unet = CONFIG.unet.model_copy(update={"latent_channels": 8})
    with pytest.raises(UserError, match="latent_channels: 8"):
        stage(CONFIG.model_copy(update={"unet": unet}))
    with pytest.raises(UserError, match="context_dim: 24"):
        stage(CONFIG.model_copy(update={"unet": CONFIG.unet.model_copy(update={"context_dim": 24})}))


def test_a_loss_that_is_not_finite_names_the_sample(single: None) -> None:
    one, stored = stage(), batch([3, 4, 5])
    assert one.where_not_finite(stored) is None
    stored.images, stored.latents = None, torch.zeros(3, 4, 8, 8)
    stored.latents[1, 0, 0, 0] = torch.nan
    t = int(one._timesteps(stored)[1])
    assert np.isnan(float(one.train_step(stored, 0, 0, 8)["diffusion_loss"]))
    assert one.where_not_finite(stored) == f"sample 4 (number 4) at t = {t} on rank 0"
    with torch.no_grad():
        one.model.unet.conv_in.weight[0, 0, 0, 0] = torch.inf  # a spoilt weight spoils the first of all samples
    stored.latents[1] = 0.0
    assert one.where_not_finite(stored).startswith("sample 3 (number 3)")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["pictures", "stored", "inpaint"])
def test_a_step_waits_for_the_device_at_the_gradient_norm_alone(kind: str, single: None) -> None:
    """The norm is asked for on the host, since a gradient that is not finite is skipped."""
    condition = InpaintConfig() if kind == "inpaint" else None
    one = stage(CONFIG.model_copy(update={"condition": condition, "offset_noise": 0.1}))
    seen = batch([0, 1, 2])
    if kind == "stored":
        seen.images, seen.latents = None, torch.zeros(3, 4, 8, 8)
    one.train_step(seen, 0, 0, 8)
    assert waits_of(lambda: one.train_step(seen, 1, 3, 8)) == {"finite_norm": 1}


def test_compiled_blocks_under_zero_3_are_refused() -> None:
    config = CONFIG.model_copy(update={"unet": CONFIG.unet.model_copy(update={"compile_blocks": True})})
    engine = EngineConfig(kind="deepspeed", zero_stage=3)
    with pytest.raises(UserError, match="compile_blocks: not under engine.zero_stage 3"):
        DiffusionStage(config, engine, OptimConfig(), Process(), 5, first_stage())


def validation_metrics(process: Process, sample_ids: list[list[int]]) -> dict[str, float]:
    """Of a stage whose averaged weights are not the zeros of the start."""
    one = stage(process=process)
    with torch.no_grad():
        one.model.unet.conv_out.weight.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
        torch._foreach_copy_(one.ema.averages, one.ema.masters)
    return dict(one.validate([batch(ids) for ids in sample_ids]))


def validate_on_a_rank(sample_ids: list[list[int]]) -> dict[str, float]:
    process = processes.start()
    try:
        return validation_metrics(process, sample_ids[process.rank :: process.world_size])
    finally:
        processes.finish()


def test_validation_is_exact_over_unequal_ranks(single: None) -> None:
    sample_ids = [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    ranks = run_ranks(validate_on_a_rank, 2, sample_ids)
    assert ranks[0] == ranks[1]
    assert ranks[0] == pytest.approx(validation_metrics(Process(), sample_ids), rel=1e-5)


def test_in_step_counts_each_batch_once(single: None) -> None:
    def batches() -> Iterator[Batch]:
        yield batch([0])
        yield batch([1])

    assert [(b.sample_ids, counts) for b, counts in in_step(batches())] == [([0], True), ([1], True)]
    assert list(in_step([])) == []


@pytest.fixture(scope="module")
def single() -> Iterator[None]:
    """A world of one for the tests that train in this process."""
    processes.start()
    yield
    processes.finish()


@pytest.mark.parametrize("condition", [InpaintConfig(), UpscaleConfig()], ids=["inpaint", "upscale"])
def test_a_conditioned_stage_trains_on_pictures_alone(condition: InpaintConfig | UpscaleConfig, single: None) -> None:
    one = stage(CONFIG.model_copy(update={"condition": condition}))
    metrics = one.train_step(batch([0, 1, 2]), 0, 0, 8)
    assert np.isfinite(float(metrics["diffusion_loss"]))
    assert one.preview().ndim == 3
    stored = batch([0])
    stored.images, stored.latents = None, torch.zeros(1, 4, 8, 8)
    with pytest.raises(UserError, match=f"{condition.kind} needs pictures"):
        one.train_step(stored, 1, 3, 8)


def test_offset_noise_is_one_number_for_each_channel_of_a_sample(single: None) -> None:
    plain, offset = stage(), stage(CONFIG.model_copy(update={"offset_noise": 0.5}))
    added = offset._noise(batch([3, 4]), (4, 8, 8)) - plain._noise(batch([3, 4]), (4, 8, 8))
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert added[:, :, 0, 0].unique().numel() == 8


def test_every_width_of_the_average_is_a_part_of_its_own(single: None) -> None:
    one = stage(CONFIG.model_copy(update={"ema": EmaConfig(power_widths=(0.05, 0.1))}))
    one.train_step(batch([0, 1, 2]), 0, 0, 8)
    assert set(one.parts()) == {"unet", "unet_ema", "unet_ema_0.05", "unet_ema_0.1"}
    for track in one.tracks.values():  # the first update takes the weights whole
        assert all(torch.equal(a, b) for a, b in zip(track.averages, track.masters, strict=True))
