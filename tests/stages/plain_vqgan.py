"""The VQGAN step in plain torch: as it is written down, and by the leaf method, whose roundings in bf16 are others.

The first says what a step should be, the second that engines and ranks add nothing to it. In bf16 every forward has an
autocast block of its own: until the outermost block ends, autocast keeps its copies of weights that have changed since.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.transforms import to_model
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.discriminator import Discriminator
from pipeline.optim import build_optimizer
from pipeline.randomness import Draws, Purpose
from pipeline.stages.autoencoder import AutoencoderStageConfig
from tests.stages.small_stages import GLOBAL_BATCH, OPTIM, SEED, global_images, sample_ids

Cast = Callable[[], AbstractContextManager[None]]
Losses = tuple[Tensor, Tensor | None, Tensor | None]
"""Of the autoencoder, of the discriminator once the game has begun, and lambda."""


def plain_vqgan(
    config: AutoencoderStageConfig, steps: int, precision: str = "fp32", num_parts: int | None = None
) -> tuple[dict[str, np.ndarray], list[float]]:
    """The weights, flat, by engine and name, and the lambdas.

    Args:
        num_parts: of each batch, as many ranks take it, each by itself and by the leaf method; None: as written.
    """
    assert config.adversarial
    networks = {
        "autoencoder": Autoencoder(config.model, SEED),
        "discriminator": Discriminator(config.adversarial.discriminator, SEED),
    }
    optimizers = [build_optimizer(OPTIM, network) for network in networks.values()]
    losses_of = partial(_by_leaf, num_parts) if num_parts else _as_written
    lambdas = []
    for step in range(steps):
        cast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
        *losses, weight = losses_of(config, *networks.values(), step, cast)
        lambdas += [] if weight is None else [weight.item()]
        for network, optimizer, loss in zip(networks.values(), optimizers, losses, strict=True):
            if loss is not None:
                optimizer.zero_grad()
                loss.backward(inputs=list(network.parameters()))
                optimizer.step()
    named = {f"{engine}.{n}": p for engine, network in networks.items() for n, p in network.named_parameters()}
    return {name: parameter.detach().flatten().numpy() for name, parameter in named.items()}, lambdas


def _as_written(
    config: AutoencoderStageConfig, model: Autoencoder, critic: Discriminator, step: int, cast: Cast
) -> Losses:
    """Lambda by autograd on the last weight itself."""
    x, noise = to_model(global_images(step)), _posterior_noise(config, step)
    with cast():
        result = model(x, noise)
    nll = _picture_loss(result.images, x)
    loss = nll + sum(result.quantized.losses.values())
    assert config.adversarial
    if step < config.adversarial.start_step:
        return loss, None, None
    game = _game_loss(critic, result.images, cast)
    last = model.decoder.conv_out.weight
    by_nll, by_game = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, game))
    weight = by_nll / (by_game + 1e-4)
    return loss + config.adversarial.weight * weight * game, _critic_loss(critic, x, result.images, cast), weight


def _by_leaf(
    num_parts: int, config: AutoencoderStageConfig, model: Autoencoder, critic: Discriminator, step: int, cast: Cast
) -> Losses:
    """From the gradients at the reconstruction; lambda from the last convolution alone, in float32."""
    assert config.adversarial and step >= config.adversarial.start_step
    images, noise = to_model(global_images(step)), _posterior_noise(config, step)
    of_critic, parts, on_weight = images.new_zeros(()), [], torch.zeros(2, *model.decoder.conv_out.weight.shape)
    for part in (slice(rank, None, num_parts) for rank in range(num_parts)):
        x = images[part].contiguous(memory_format=torch.channels_last)
        with cast():
            result = model(x, None if noise is None else noise[part])
        leaf = result.images.detach().requires_grad_()
        terms = _picture_loss(leaf, x), _game_loss(critic, leaf, cast)
        directions = [torch.autograd.grad(term, leaf)[0] for term in terms]
        last = model.decoder.conv_out.weight.detach().clone().requires_grad_()
        again = F.conv2d(result.last_hidden.detach().float(), last, padding=1)
        on_weight += torch.stack([torch.autograd.grad(again, last, d, retain_graph=True)[0] for d in directions])
        parts.append((result, directions))
        of_critic = of_critic + _critic_loss(critic, x, leaf, cast) / num_parts
    by_nll, by_game = (on_weight / num_parts).flatten(1).norm(dim=1)
    weight = by_nll / (by_game + 1e-4)
    loss = images.new_zeros(())
    for result, (of_nll, of_game) in parts:
        direction = of_nll + config.adversarial.weight * weight * of_game
        loss = loss + ((result.images * direction).sum() + sum(result.quantized.losses.values())) / num_parts
    return loss, of_critic, weight


def _picture_loss(restored: Tensor, x: Tensor) -> Tensor:
    return F.l1_loss(restored, x) + 0.5 * F.mse_loss(restored, x)


def _game_loss(critic: Discriminator, restored: Tensor, cast: Cast) -> Tensor:
    with cast():
        judged = critic(restored)
    return -judged.float().mean()


def _critic_loss(critic: Discriminator, x: Tensor, restored: Tensor, cast: Cast) -> Tensor:
    with cast():
        real, fake = critic(torch.cat([x, restored.detach()])).float().chunk(2)
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def _posterior_noise(config: AutoencoderStageConfig, step: int) -> Tensor | None:
    """What a KL bottleneck draws for the samples of a step: [GLOBAL_BATCH, d, 8, 8]."""
    if config.model.quantizer.kind != "kl":
        return None
    shape = (config.model.embedding_dim, 8, 8)
    return Draws(SEED).normal(Purpose.POSTERIOR, [0] * GLOBAL_BATCH, sample_ids(step), shape)
