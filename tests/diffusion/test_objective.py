"""Parametrisations invert each other; min-SNR weights against the published table; finite everywhere."""

import pytest
import torch

from pipeline.config import UserError
from pipeline.diffusion.objective import ObjectiveConfig, Prediction, build_objective
from pipeline.diffusion.schedule import ScheduleConfig

TIMESTEPS = [0, 100, 250, 500, 750, 999]


@pytest.mark.parametrize(
    "prediction, golden",
    [
        ("eps", [0.00425362, 0.591443, 1, 1, 1, 1]),
        ("v", [0.00425, 0.528883, 0.673793, 0.276333, 0.0561698, 0.00466010]),
        ("x0", [5, 5, 2.06553, 0.381850, 0.0595127, 0.00468192]),
    ],
)
def test_min_snr_weights(prediction: Prediction, golden: list[float]) -> None:
    weights = build_objective(ObjectiveConfig(prediction=prediction, min_snr_gamma=5.0)).weights()
    assert weights[TIMESTEPS].tolist() == pytest.approx(golden, rel=5e-6)


def test_snr_reaches_gamma_at_the_published_timestep() -> None:
    snr = build_objective(ObjectiveConfig()).schedule.snr
    assert snr[146] >= 5.0 > snr[147]


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_clean_inverts_target(prediction: Prediction, zero_terminal_snr: bool) -> None:
    if prediction == "eps" and zero_terminal_snr:
        return
    schedule = ScheduleConfig(zero_terminal_snr=zero_terminal_snr)
    objective = build_objective(ObjectiveConfig(schedule=schedule, prediction=prediction))
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 6, 4, 3, 3, generator=generator)
    t = torch.tensor(TIMESTEPS)
    noised = objective.schedule.add_noise(clean, noise, t)
    recovered = objective.clean(objective.target(clean, noise, t), noised, t)
    torch.testing.assert_close(recovered, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_loss_is_finite_at_every_timestep_of_a_zero_terminal_schedule(prediction: Prediction) -> None:
    config = ObjectiveConfig(schedule=ScheduleConfig(zero_terminal_snr=True), prediction=prediction, min_snr_gamma=5.0)
    objective = build_objective(config)
    t = torch.arange(1000)
    ones = torch.ones(1000, 1, 2, 2)
    assert objective.loss(0.5 * ones, ones, 2 * ones, t).isfinite().all()


def test_eps_weight_keeps_its_limit_where_there_is_no_signal() -> None:
    objective = build_objective(ObjectiveConfig(min_snr_gamma=5.0))
    zeroed = type(objective.schedule)(torch.cat([objective.schedule.alphas_cumprod[:-1], torch.zeros(1)]))
    assert type(objective)(zeroed, "eps", 5.0).weights()[-1] == 1.0


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_lower_clip_keeps_pure_noise_in_the_loss(zero_terminal_snr: bool) -> None:
    schedule = ScheduleConfig(zero_terminal_snr=zero_terminal_snr)
    config = ObjectiveConfig(schedule=schedule, prediction="v", min_snr_gamma=5.0, truncated_snr=0.2)
    objective = build_objective(config)
    snr, weights = objective.schedule.snr, objective.weights()
    assert weights[-1] == pytest.approx(0.2 / (float(snr[-1]) + 1), rel=1e-9)
    plain = build_objective(config.model_copy(update={"truncated_snr": None})).weights()
    assert torch.equal(weights[snr >= 0.2], plain[snr >= 0.2]) and bool((weights >= plain).all())


def test_eps_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(UserError, match="eps"):
        build_objective(ObjectiveConfig(schedule=ScheduleConfig(zero_terminal_snr=True)))


def test_losses_of_the_parametrisations_agree_under_min_snr() -> None:
    """Equal errors in x0, told in any parametrisation, cost the same: that is what makes the weights one rule."""
    generator = torch.Generator().manual_seed(1)
    clean, noise, error = torch.randn(3, 6, 4, 3, 3, generator=generator)
    t = torch.tensor(TIMESTEPS[1:] + [300])
    losses = {}
    for prediction in ("x0", "eps", "v"):
        objective = build_objective(ObjectiveConfig(prediction=prediction, min_snr_gamma=5.0))
        signal, sigma = objective.schedule.scales(t, clean)
        in_output = {"x0": error, "eps": -error * signal / sigma, "v": -error / sigma}[prediction]
        losses[prediction] = objective.loss(objective.target(clean, noise, t) + in_output, clean, noise, t)
    torch.testing.assert_close(losses["eps"], losses["x0"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses["v"], losses["x0"], rtol=1e-3, atol=1e-6)
