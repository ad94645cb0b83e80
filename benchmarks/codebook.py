"""Our moving-average codebook beside that of vector-quantize-pytorch: training steps on the same latents."""

import torch
import vector_quantize_pytorch

from benchmarks.race import Result, Side, Stopwatch, race
from pipeline.quantizers.ema import EmaCodebookConfig, EmaQuantizer

BATCH, WIDTH, PLACES, NUM_CODES = 16, 8, 16, 1024
STEPS = 20
PEER = "vector-quantize-pytorch"


def races() -> list[Result]:
    """Quantise, take the gradient of the commitment loss, update the codebook."""
    latents = torch.randn(BATCH, WIDTH, PLACES, PLACES)
    ours = EmaQuantizer(EmaCodebookConfig(num_codes=NUM_CODES), WIDTH, seed=0)
    theirs = vector_quantize_pytorch.VectorQuantize(
        dim=WIDTH, codebook_size=NUM_CODES, decay=0.99, accept_image_fmap=True, kmeans_init=True
    )

    def run_ours(watch: Stopwatch) -> int:
        with watch.running():
            for step in range(STEPS):
                leaf = latents.clone().requires_grad_()
                result = ours(leaf)
                sum(result.losses.values()).backward()
                ours.update(leaf.detach(), result.codes, step)
        return STEPS

    def run_theirs(watch: Stopwatch) -> int:
        with watch.running():
            for _ in range(STEPS):
                leaf = latents.clone().requires_grad_()
                theirs(leaf)[2].sum().backward()
        return STEPS

    title = f"Codebook of {NUM_CODES} codes, {BATCH} maps of {PLACES} x {PLACES}"
    return [race(title, "steps/s", [Side("ours", run_ours), Side(PEER, run_theirs)])]
