"""Our codebooks beside those of vector-quantize-pytorch and diffusers: one training step on the same latents.

N vectors of width d, K codes. The moving average races vector-quantize-pytorch's, update included; the trained codebook
races diffusers', forward and backward. Peak memory is that of a fresh process which makes one step, less what it had
before.
"""

import multiprocessing
from collections.abc import Callable
from importlib.metadata import version

import torch

from benchmarks.memory import forget_peak, peak
from benchmarks.race import Result, Side, Stopwatch, race
from pipeline.quantizers.ema import EmaCodebookConfig, EmaQuantizer
from pipeline.quantizers.gradient import GradientCodebookConfig, GradientQuantizer
from pipeline.torchvision_shim import declare_missing_operators

SHAPES = [(1024, 16384, 8), (1024, 16384, 256), (4096, 8192, 3)]
"""(N, K, d)."""
LARGE = (256, 262_144, 8)
PICTURES = 4

Step = Callable[[], None]


def ours_ema(num_vectors: int, num_codes: int, width: int) -> Step:
    """Quantise, commitment loss backward, moving averages."""
    vq, latents = EmaQuantizer(EmaCodebookConfig(num_codes=num_codes), width, seed=0), _latents(num_vectors, width)
    vq.active.fill_(True)
    steps = iter(range(1, 1_000_000))

    def step() -> None:
        leaf = latents.clone().requires_grad_()
        result = vq(leaf)
        (result.latent.sum() + result.losses["commitment_loss"]).backward()
        vq.update(leaf.detach(), result.codes, next(steps))

    return step


def theirs_ema(num_vectors: int, num_codes: int, width: int) -> Step:
    """The same through vector-quantize-pytorch's VectorQuantize."""
    import vector_quantize_pytorch

    vq = vector_quantize_pytorch.VectorQuantize(
        dim=width, codebook_size=num_codes, decay=0.99, accept_image_fmap=True, rotation_trick=False
    )
    latents = _latents(num_vectors, width)

    def step() -> None:
        leaf = latents.clone().requires_grad_()
        quantized, _, loss = vq(leaf)
        (quantized.sum() + loss.sum()).backward()

    return step


def ours_trained(num_vectors: int, num_codes: int, width: int) -> Step:
    """Quantise, both losses backward."""
    config = GradientCodebookConfig(num_codes=num_codes, cosine=False)
    vq, latents = GradientQuantizer(config, width, seed=0), _latents(num_vectors, width)

    def step() -> None:
        vq.zero_grad()
        leaf = latents.clone().requires_grad_()
        result = vq(leaf)
        (result.latent.sum() + sum(result.losses.values())).backward()

    return step


def theirs_trained(num_vectors: int, num_codes: int, width: int) -> Step:
    """The same through diffusers' VectorQuantizer."""
    declare_missing_operators()
    from diffusers.models.autoencoders.vae import VectorQuantizer

    vq, latents = VectorQuantizer(num_codes, width, beta=0.25, legacy=False), _latents(num_vectors, width)

    def step() -> None:
        vq.zero_grad()
        leaf = latents.clone().requires_grad_()
        quantized, loss, _ = vq(leaf)
        (quantized.sum() + loss).backward()

    return step


PAIRS: list[tuple[str, Callable[..., Step], str, Callable[..., Step]]] = [
    ("moving average", ours_ema, "vector-quantize-pytorch", theirs_ema),
    ("trained codes", ours_trained, "diffusers", theirs_trained),
]


def races() -> list[Result]:
    """Time of every shape, then peak memory of the largest codebook."""
    results = []
    for shape in [*SHAPES, LARGE]:
        for what, ours, peer, theirs in PAIRS:
            sides = [_side("ours", ours(*shape)), _side(f"{peer} {version(peer)}", theirs(*shape))]
            results.append(race(f"{what}, (N, K, d) = {shape}", "steps/s", sides, num_rounds=5))
    for what, ours, peer, theirs in PAIRS:
        peaks = {"ours": peak_mib(ours, LARGE), peer: peak_mib(theirs, LARGE)}
        results.append(Result(f"{what}, (N, K, d) = {LARGE}: peak memory of a step", "MiB", peaks))
    return results


def peak_mib(make: Callable[..., Step], shape: tuple[int, int, int]) -> float:
    """Largest memory of a process that makes one step, over what it had with model and latents made, in MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (make, shape))


def _peak(make: Callable[..., Step], shape: tuple[int, int, int]) -> float:
    torch.set_num_threads(1)
    step = make(*shape)
    before = forget_peak()
    step()
    return peak() - before


def _side(name: str, step: Step) -> Side:
    def run(watch: Stopwatch) -> int:
        with watch.running():
            step()
        return 1

    return Side(name, run)


def _latents(num_vectors: int, width: int) -> torch.Tensor:
    """[PICTURES, d, h, w] with N places in all."""
    side = num_vectors // PICTURES
    return torch.randn(PICTURES, width, side // 8, 8, generator=torch.Generator().manual_seed(0))
