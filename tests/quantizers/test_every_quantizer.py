"""What holds for every quantizer: codes round-trip, gradients reach the encoder, ranks do not matter."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.distributed.process import all_reduce_mean, start
from pipeline.quantizers import Quantizer, QuantizerConfig, build_quantizer
from pipeline.quantizers.ema import EmaCodebookConfig
from pipeline.quantizers.gradient import GradientCodebookConfig
from pipeline.quantizers.lattice import FsqConfig, LfqConfig
from pipeline.quantizers.residual import ResidualConfig, ResidualQuantizer
from pipeline.quantizers.simvq import SimVqConfig
from tests.ranks import run_ranks

WIDTH = 4
CONFIGS: dict[str, QuantizerConfig] = {
    "gradient": GradientCodebookConfig(num_codes=16, cosine=False),
    "cosine": GradientCodebookConfig(num_codes=16, entropy_weight=0.1, entropy_temperature=0.1),
    "legacy": GradientCodebookConfig(num_codes=16, cosine=False, legacy=True),
    "rotation": GradientCodebookConfig(num_codes=16, cosine=False, gradient_path="rotation"),
    "ema": EmaCodebookConfig(num_codes=16, revive_every_steps=2),
    "ema-cosine": EmaCodebookConfig(num_codes=16, cosine=True, entropy_weight=0.1),
    "simvq": SimVqConfig(num_codes=16, entropy_weight=0.1),
    "residual": ResidualConfig(num_stages=3, stage=GradientCodebookConfig(num_codes=16, cosine=False)),
    "residual-ema": ResidualConfig(num_stages=2, stage=EmaCodebookConfig(num_codes=16)),
    "fsq": FsqConfig(levels=(5, 4, 3, 4)),
    "lfq": LfqConfig(num_codes=16),
    "lfq-big": LfqConfig(num_codes=16, bit_order="big"),
}


def latents(seed: int = 0, count: int = 4) -> Tensor:
    return torch.randn(count, WIDTH, 3, 5, generator=torch.Generator().manual_seed(seed))


def built(name: str) -> Quantizer:
    quantizer = build_quantizer(CONFIGS[name], WIDTH, seed=1)
    quantizer.update(latents(9), quantizer(latents(9)).codes, 0)  # places the codes of a moving average
    return quantizer


@pytest.mark.parametrize("name", list(CONFIGS))
def test_codes_round_trip_and_the_latent_is_exactly_their_vectors(name: str) -> None:
    quantizer, z = built(name), latents()
    result = quantizer(z)
    assert torch.allclose(quantizer.lookup(result.codes), result.latent, atol=1e-6)
    assert torch.equal(quantizer.assign(z), result.codes)
    assert torch.equal(quantizer.assign(quantizer.prepare(z)), result.codes)
    assert torch.allclose(quantizer.snap(z), result.latent)
    assert result.codes.min() >= 0 and result.codes.max() < quantizer.num_codes == len(result.usage)
    assert torch.equal(result.usage, torch.bincount(result.codes.flatten(), minlength=quantizer.num_codes).float())


@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients_reach_the_encoder_and_every_trained_code_table(name: str) -> None:
    quantizer, z = built(name), latents().requires_grad_()
    result = quantizer(z)
    (result.latent.square().sum() + torch.stack([*result.losses.values(), z.new_zeros(())]).sum()).backward()
    assert z.grad is not None and z.grad.isfinite().all() and (z.grad != 0).any()
    assert all(p.grad is not None and p.grad.any() for p in quantizer.parameters())


def test_every_stage_of_a_residual_pulls_the_encoder() -> None:
    """Of beta mean |z - q_1 - ... - q_i|^2 over the stages i: 2 beta / n times the sum of what each leaves over."""
    quantizer, z = built("residual"), latents().requires_grad_()
    assert isinstance(quantizer, ResidualQuantizer)
    quantizer(z).losses["commitment_loss"].backward()
    rest, pull = z.detach(), torch.zeros_like(z)
    for stage in quantizer.codebooks:
        rest = rest - stage.lookup(stage.assign(rest))
        pull = pull + rest
    assert z.grad is not None and torch.allclose(z.grad, 2 * 0.25 / z.numel() * pull, atol=1e-7)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_quantizer_is_saved_and_loaded(name: str) -> None:
    quantizer = built(name)
    other = build_quantizer(CONFIGS[name], WIDTH, seed=77)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(latents()).latent, quantizer(latents()).latent)


def trained(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """State and the encoder's gradient (this rank's pictures) after some steps on this rank's part of the batches."""
    process = start()
    quantizer = build_quantizer(CONFIGS[name], WIDTH, seed=1)
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for step in range(4):
        z = latents(step)[process.rank :: process.world_size].clone().requires_grad_()
        result = quantizer(z)
        optimizer.zero_grad()
        (result.latent.square().mean() + torch.stack([*result.losses.values(), z.new_zeros(())]).sum()).backward()
        for parameter in quantizer.parameters():
            all_reduce_mean(parameter.grad)
        optimizer.step()
        quantizer.update(z.detach(), result.codes, step)
    assert z.grad is not None
    return [tensor.numpy() for tensor in quantizer.state_dict().values()], z.grad.numpy() / process.world_size


def all_trained() -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    return {name: trained(name) for name in CONFIGS}


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_train_what_one_trains(num_ranks: int) -> None:
    alone = all_trained()
    ranks = run_ranks(all_trained, num_ranks)
    for name, (state, gradient) in alone.items():
        for rank, results in enumerate(ranks):
            for ours, theirs in zip(state, results[name][0], strict=True):
                assert np.allclose(ours, theirs, atol=1e-5), name
            assert np.allclose(gradient[rank::num_ranks], results[name][1], atol=1e-5), name


def test_the_rotation_trick_turns_and_scales_the_gradient() -> None:
    """Forward the code exactly; backward |e|/|z| R^T g with R z/|z| = e/|e|, R orthogonal."""
    quantizer = built("rotation")
    z = torch.randn(1, WIDTH, 1, 1, dtype=torch.float32).requires_grad_()
    result = quantizer(z)
    e = result.latent.detach().flatten()
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x).latent.flatten(), z.detach()).reshape(4, 4)
    scale = e.norm() / z.norm()
    assert torch.allclose(jacobian @ z.detach().flatten(), e, atol=1e-5)
    assert torch.allclose(jacobian @ jacobian.t(), scale**2 * torch.eye(4), atol=1e-5)


def test_fsq_gives_each_level_and_numbers_them_with_the_first_channel_fastest() -> None:
    quantizer = build_quantizer(FsqConfig(levels=(8, 5)), 2, seed=0)
    grid = torch.cartesian_prod(torch.linspace(-9, 9, 400), torch.linspace(-9, 9, 400))
    codes = quantizer.assign(grid.t().reshape(1, 2, 400, 400))
    assert codes.unique().tolist() == list(range(40))
    assert quantizer.lookup(torch.tensor([[[0, 1, 8]]])).squeeze().t().tolist() == [[-1, -1], [-0.75, -1], [-1, -0.5]]


@pytest.mark.parametrize(("order", "code"), [("little", 0b0011), ("big", 0b1100)])
def test_lfq_codes_have_the_bit_order_of_the_config(order: str, code: int) -> None:
    quantizer = build_quantizer(LfqConfig(num_codes=16, bit_order=order), 4, seed=0)
    assert quantizer.assign(torch.tensor([1.0, 2.0, -1.0, 0.0]).reshape(1, 4, 1, 1)).item() == code


def test_lattices_agree_with_vector_quantize_pytorch() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch")
    z = latents(3)
    tokens = z.permute(0, 2, 3, 1).reshape(4, 15, WIDTH)
    theirs, ids = peer.FSQ(levels=[5, 4, 3, 4])(tokens)
    ours = built("fsq")(z)
    assert torch.equal(ours.codes.reshape(4, 15), ids.long())
    assert torch.allclose(ours.latent.permute(0, 2, 3, 1).reshape(4, 15, WIDTH), theirs, atol=1e-6)
    ids = peer.LFQ(dim=WIDTH, codebook_size=16).eval()(tokens)[1]
    assert torch.equal(built("lfq-big").assign(z).reshape(4, 15), ids)


def test_entropy_penalty_is_the_plain_formula_and_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.quantizers import entropy

    z, table = torch.randn(37, 3, requires_grad=True), torch.randn(11, 3, requires_grad=True)
    p = torch.softmax(-torch.cdist(z, table).square() / 0.5, dim=1)
    mean = p.mean(0)
    plain = -(p * p.log()).sum(1).mean() + (mean * (mean + entropy.EPSILON).log()).sum()
    expected = torch.autograd.grad(plain, (z, table))
    monkeypatch.setattr(entropy, "MAX_BLOCK_ELEMENTS", 55)  # five rows at a time
    ours = entropy.entropy_penalty(z, table, 0.5)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(ours, (z, table)), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "width", "said"),
    [
        (FsqConfig(levels=(8, 8)), 3, "embedding_dim 3 is not the number of fsq levels, 2"),
        (LfqConfig(num_codes=1000), 10, r"num_codes 1000 is not 2 \*\* embedding_dim = 1024"),
    ],
)
def test_a_width_that_does_not_fit_is_refused(config: QuantizerConfig, width: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.check_width(width)


def test_a_residual_of_unit_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="set cosine: false"):
        ResidualConfig(stage=GradientCodebookConfig())
