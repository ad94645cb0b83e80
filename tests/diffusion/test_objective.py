"""Parametrisations invert each other; min-SNR weights against the published table; finite everywhere."""

import numpy as np
import pytest
import torch

from pipeline.config import UserError
from pipeline.diffusion.objective import ObjectiveConfig, Prediction, build_objective
from pipeline.diffusion.schedule import NoiseSchedule, ScheduleConfig

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


OBJECTIVES = {
    "eps": ObjectiveConfig(),
    "v": ObjectiveConfig(prediction="v"),
    "v, zero-terminal": ObjectiveConfig(prediction="v", schedule=ScheduleConfig(zero_terminal_snr=True)),
    "x0, zero-terminal": ObjectiveConfig(prediction="x0", schedule=ScheduleConfig(zero_terminal_snr=True)),
    "flow": ObjectiveConfig(prediction="flow", schedule=ScheduleConfig(kind="flow")),
    "edm": ObjectiveConfig(prediction="edm", sigma_data=0.5, schedule=ScheduleConfig(kind="edm")),
    "edm on v's schedule": ObjectiveConfig(prediction="edm", schedule=ScheduleConfig(zero_terminal_snr=True)),
}


@pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)
def test_clean_inverts_target(config: ObjectiveConfig) -> None:
    objective = build_objective(config)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 6, 4, 3, 3, generator=generator)
    t = torch.tensor(TIMESTEPS)
    noised = objective.schedule.add_noise(clean, noise, t)
    recovered = objective.clean(objective.target(clean, noise, t), noised, t)
    torch.testing.assert_close(recovered, clean, rtol=1e-4, atol=1e-4)


def test_edm_is_the_papers_preconditioning() -> None:
    """D(x; sigma) = c_skip x + c_out F(c_in x), table 1 of arXiv 2206.00364."""
    objective = build_objective(OBJECTIVES["edm"])
    x, output = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    t, data = torch.tensor(TIMESTEPS), 0.5
    sigma = objective.schedule.noise[t].float().view(-1, 1, 1, 1)
    assert sigma[0] == pytest.approx(0.002) and sigma[-1] == pytest.approx(80.0)
    total = (sigma**2 + data**2).sqrt()
    torch.testing.assert_close(objective.network_input(x, t), x / total)
    expected = data**2 / total**2 * x + sigma * data / total * output
    torch.testing.assert_close(objective.clean(output, x, t), expected)


def test_edm_at_unit_variance_is_velocity_with_the_other_sign() -> None:
    schedule = ScheduleConfig(zero_terminal_snr=True)
    edm = build_objective(ObjectiveConfig(prediction="edm", schedule=schedule))
    v = build_objective(ObjectiveConfig(prediction="v", schedule=schedule))
    clean, noise = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(TIMESTEPS)
    torch.testing.assert_close(edm.target(clean, noise, t), -v.target(clean, noise, t))
    torch.testing.assert_close(edm.network_input(clean, t), clean)


def test_sigmas_of_training_are_log_normal() -> None:
    config = OBJECTIVES["edm"].model_copy(update={"log_sigma_normal": (-1.2, 1.2)})
    objective = build_objective(config)
    t = objective.timesteps((np.arange(100_000) + 0.5) / 100_000)
    log_sigma = objective.schedule.noise[t].log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=5e-3)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=1e-2)


def test_logit_normal_times_of_flow_lie_in_the_middle() -> None:
    config = OBJECTIVES["flow"].model_copy(update={"log_sigma_normal": (0.0, 1.0)})
    s = build_objective(config).timesteps((np.arange(100_000) + 0.5) / 100_000).double() / 1000
    assert float(s.mean()) == pytest.approx(0.5, abs=2e-3)
    assert float((s.logit()).std()) == pytest.approx(1.0, abs=1e-2)


def test_without_a_density_every_timestep_is_as_likely() -> None:
    t = build_objective(ObjectiveConfig()).timesteps((np.arange(10_000) + 0.5) / 10_000)
    assert torch.equal(t.bincount(), torch.full((1000,), 10))


@pytest.mark.parametrize(
    "config, word",
    [
        (ObjectiveConfig(prediction="eps", schedule=ScheduleConfig(kind="flow")), "eps"),
        (ObjectiveConfig(prediction="v", schedule=ScheduleConfig(kind="flow")), "flow"),
        (ObjectiveConfig(prediction="flow"), "flow"),
        (ObjectiveConfig(prediction="x0", schedule=ScheduleConfig(kind="edm")), "edm"),
        (ObjectiveConfig(prediction="edm", schedule=ScheduleConfig(kind="edm", zero_terminal_snr=True)), "sigma_max"),
        (ObjectiveConfig(prediction="v", log_sigma_normal=(0.0, 0.0)), "log_sigma_normal"),
    ],
)
def test_parametrisations_that_a_schedule_cannot_carry_are_refused(config: ObjectiveConfig, word: str) -> None:
    with pytest.raises(UserError, match=word):
        build_objective(config)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_loss_is_finite_at_every_timestep_of_a_zero_terminal_schedule(prediction: Prediction) -> None:
    config = ObjectiveConfig(schedule=ScheduleConfig(zero_terminal_snr=True), prediction=prediction, min_snr_gamma=5.0)
    objective = build_objective(config)
    t = torch.arange(1000)
    ones = torch.ones(1000, 1, 2, 2)
    assert objective.loss(0.5 * ones, ones, 2 * ones, t).isfinite().all()


def test_eps_weight_keeps_its_limit_where_there_is_no_signal() -> None:
    objective = build_objective(ObjectiveConfig(min_snr_gamma=5.0))
    signal, noise = objective.schedule.signal.clone(), objective.schedule.noise.clone()
    signal[-1], noise[-1] = 0.0, 1.0
    assert type(objective)(NoiseSchedule(signal, noise), "eps", 5.0).weights()[-1] == 1.0


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
    for prediction in ("x0", "eps", "v", "edm"):
        objective = build_objective(ObjectiveConfig(prediction=prediction, min_snr_gamma=5.0))
        signal, sigma = objective.schedule.scales(t, clean)
        in_output = {"x0": error, "eps": -error * signal / sigma, "v": -error / sigma, "edm": error / sigma}[prediction]
        losses[prediction] = objective.loss(objective.target(clean, noise, t) + in_output, clean, noise, t)
    torch.testing.assert_close(losses["eps"], losses["x0"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses["v"], losses["x0"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses["edm"], losses["x0"], rtol=1e-3, atol=1e-6)
