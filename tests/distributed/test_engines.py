"""Both engines, every ZeRO stage, two ranks: the same training as plain torch with averaged gradients."""

import glob
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from pipeline.config import UserError
from pipeline.distributed.ema import Ema, EmaConfig
from pipeline.distributed.engine import EngineConfig, build_engine
from pipeline.distributed.process import Process, finish, start
from tests.distributed.toys import (
    LOW_PRECISION,
    OPTIM,
    VARIANTS,
    Net,
    Plain,
    assemble,
    distance,
    images,
    make_engine,
    train_engine,
    train_plain,
)
from tests.ranks import run_ranks

STEPS = range(4)
LEAKS = "/dev/shm/deepspeed_allreduce_buffer_*"


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {f"param/{name}": p.detach().clone() for name, p in module.named_parameters()}


def body(variants: list[str]) -> dict[str, dict[str, Any]]:
    process = start()
    leaked = set(glob.glob(LEAKS))
    results = {v: check_plain(v, process) | check_ema(v, process) | check_gan(v, process) for v in variants}
    results["bf16"] = check_low_precision(process)
    assert set(glob.glob(LEAKS)) == leaked
    finish()
    again = {v: train_engine(make_engine(v, start()), STEPS, process) for v in ("accelerate", "zero2")}
    assert again["zero2"] == pytest.approx(again["accelerate"], rel=1e-6)  # a second start in the same process works
    return results


def check_plain(variant: str, process: Process) -> dict[str, Any]:
    plain, engine = Plain(Net()), make_engine(variant, process)
    expected = train_plain(plain, STEPS, process.rank)
    norms = train_engine(engine, STEPS, process)
    state = assemble(engine)
    params = {key: value for key, value in state.items() if key.startswith("param/")}
    moments = {
        f"{field}/{name}": plain.adam.state[p][field]
        for name, p in plain.module.named_parameters()
        if p.requires_grad
        for field in ("exp_avg", "exp_avg_sq")
    }
    engine.backward(engine(images(9, process.rank)).image.sum() * float("nan"))
    invalid = engine.step(1.0)
    return {
        "weights": distance(params, parameters_of(plain.module)),
        "moments": distance({key: state[key] for key in moments}, moments),
        "norms": max(abs(a - b) for a, b in zip(norms, expected, strict=True)),
        "buffer": int(state["buffer/calls"]),
        "steps": engine.scalars()["step"],
        "invalid": invalid,
        "after_invalid": distance({k: v for k, v in assemble(engine).items() if k in params}, params),
    }


def check_low_precision(process: Process) -> dict[str, Any]:
    """bf16 products, fp32 weights: all engines alike, near fp32 but not equal to it."""
    trained = {}
    for variant in ["accelerate", *LOW_PRECISION]:
        engine = make_engine(variant, process)
        train_engine(engine, STEPS, process)
        trained[variant] = assemble(engine)
    reference = trained["accelerate_bf16"]
    return {
        "between": max(distance(trained[variant], reference) for variant in LOW_PRECISION),
        "to_fp32": distance(trained["accelerate"], reference),
        "fp32": all(t.dtype == torch.float32 for key, t in reference.items() if not key.startswith("buffer/")),
    }


def check_ema(variant: str, process: Process) -> dict[str, Any]:
    """The sharded average against one of gathered weights, and its way into the module and out again."""
    engine = make_engine(variant, process)
    ema = Ema(engine, EmaConfig(decay=0.9))
    names = [f"param/{name}" for name, p in engine.module.named_parameters() if p.requires_grad]
    gathered = {key: value for key, value in assemble(engine).items() if key in names}
    for step in STEPS:
        train_engine(engine, range(step, step + 1), process)
        weights = assemble(engine)
        for key, average in gathered.items():
            average.lerp_(weights[key], 1.0 - min(0.9, (1 + step) / (10 + step)))
        ema.update()
    averages = {key.replace("ema/", "param/"): value for key, value in assemble(ema).items()}

    engine.module.eval()
    x = images(7, process.rank)
    reference = Net().eval()
    reference.load_state_dict({key.removeprefix("param/"): value for key, value in gathered.items()}, strict=False)
    with torch.no_grad():
        own = engine(x).image.clone()
        before = assemble(engine)
        with ema.applied():
            averaged = engine(x).image.clone()
        return {
            "ema": distance(averages, gathered),
            "applied": float((averaged - reference(x).image).abs().max()),
            "moved": float((averaged - own).abs().max()),
            "swapped_back": distance(assemble(engine), before) + float((engine(x).image - own).abs().max()),
        }


def check_gan(variant: str, process: Process) -> dict[str, Any]:
    """A generator and a critic in two engines by the leaf method, against the usual two extra backwards."""
    engines = make_engine(variant, process, name="g"), make_engine(variant, process, seed=1, name="d")
    plain = Plain(Net()), Plain(Net(1))
    shape = tuple(plain[0].module.last.weight.shape)
    errors = []
    for step in STEPS:
        x = images(step, process.rank)
        mine = leaf_step(*engines, x, shape)
        usual = usual_step(*plain, x)
        errors.append(abs(mine - usual) / usual)
    weights = [
        distance({k: v for k, v in assemble(e).items() if k.startswith("param/")}, parameters_of(p.module))
        for e, p in zip(engines, plain, strict=True)
    ]
    return {"gan": max(weights), "adaptive_weight": max(errors)}


def leaf_step(g: Any, d: Any, x: Tensor, weight_shape: tuple[int, ...]) -> float:
    output = g(x)
    y, h = output.image, output.hidden
    leaf = y.detach().requires_grad_()
    set_trainable(d.module, False)
    (g_rec,) = torch.autograd.grad((leaf - x).abs().mean(), leaf)
    (g_gan,) = torch.autograd.grad(-d(leaf).image.mean(), leaf)
    norms = [conv2d_weight(h.detach(), weight_shape, g, padding=1).norm() for g in (g_rec, g_gan)]
    scale = norms[0] / (norms[1] + 1e-4)
    g.backward((y * (g_rec + scale * g_gan)).sum())
    g.step(1e-2)
    assert all(p.grad is None or not p.grad.any() for p in d.module.parameters())
    set_trainable(d.module, True)
    d.backward(critic_loss(d, x, y.detach()))
    d.step(1e-2)
    return float(scale)


def usual_step(g: Plain, d: Plain, x: Tensor) -> float:
    y = g.module(x).image
    rec, gan = (y - x).abs().mean(), -d.module(y).image.mean()
    last = g.module.last.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rec, gan)]
    scale = (norms[0] / (norms[1] + 1e-4)).detach()
    (rec + scale * gan).backward()
    g.apply(1e-2)
    d.module.zero_grad()
    critic_loss(d.module, x, y.detach()).backward()
    d.apply(1e-2)
    return float(scale)


def critic_loss(critic: Any, real: Tensor, fake: Tensor) -> Tensor:
    return torch.relu(1 - critic(real).image).mean() + torch.relu(1 + critic(fake).image).mean()


def set_trainable(module: nn.Module, on: bool) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(on and name != "frozen")


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, dict[str, Any]]:
    return run_ranks(body, 2, list(VARIANTS))[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_equals_plain_torch(two_ranks: dict[str, dict[str, Any]], variant: str) -> None:
    result = two_ranks[variant]
    assert result["weights"] <= 1e-6
    assert result["moments"] <= 1e-6
    assert result["norms"] <= 1e-6
    assert result["buffer"] == len(STEPS)
    assert result["steps"] == len(STEPS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_invalid_gradient_changes_nothing(two_ranks: dict[str, dict[str, Any]], variant: str) -> None:
    assert two_ranks[variant]["invalid"] == float("inf")
    assert two_ranks[variant]["after_invalid"] == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_engines_train_a_gan_exactly(two_ranks: dict[str, dict[str, Any]], variant: str) -> None:
    assert two_ranks[variant]["gan"] <= 1e-6
    assert two_ranks[variant]["adaptive_weight"] <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_sharded_average_equals_gathered_average(two_ranks: dict[str, dict[str, Any]], variant: str) -> None:
    assert two_ranks[variant]["ema"] == 0.0
    assert two_ranks[variant]["applied"] <= 1e-6
    assert two_ranks[variant]["moved"] > 1e-4
    assert two_ranks[variant]["swapped_back"] == 0.0


def test_low_precision_is_the_same_in_all_engines(two_ranks: dict[str, dict[str, Any]]) -> None:
    assert two_ranks["bf16"]["between"] <= 1e-6
    assert 1e-6 < two_ranks["bf16"]["to_fp32"] < 0.1
    assert two_ranks["bf16"]["fp32"]


def test_parameters_must_be_fp32() -> None:
    with pytest.raises(UserError, match=r"net\.frozen is torch.bfloat16"):
        build_engine(EngineConfig(), "net", Net().bfloat16(), OPTIM, Process())
