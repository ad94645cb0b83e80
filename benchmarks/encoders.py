"""Stored latents and text states beside encoding in every step: what a training step of the second stage takes.

Both sides train the same stage on the same samples; one reads shards that `tessera-data precompute --text` wrote, the
other pictures and captions. Each measurement is a process of its own, so that its peak of memory is its own; time is
processor time, which other work on the machine disturbs little. The encoders have random weights and real shapes: an
f8 autoencoder and open_clip's ViT-S-32-alt. Called by `python -m benchmarks`.
"""

import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from benchmarks.memory import forget_peak, peak
from data_tools.precompute import LatentEncoder, PrecomputeConfig, precompute
from pipeline.checkpoint.package import AUTOENCODER_KIND, load_package, save_package
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from pipeline.diffusion.sampling import SamplingConfig
from pipeline.distributed import process as processes
from pipeline.distributed.engine import EngineConfig
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.packaged import load_autoencoder
from pipeline.models.text import PretrainedTextConfig, build_text_tower
from pipeline.models.unet import UNetConfig
from pipeline.optim import OptimConfig
from pipeline.stages.diffusion import DiffusionStage, DiffusionStageConfig
from pipeline.torchvision_shim import declare_missing_operators

NUM_PICTURES, SIDE, BATCH, STEPS, ROUNDS = 128, 64, 16, 4, 3
TOWER = "ViT-S-32-alt"
FIRST = AutoencoderConfig(
    channels=64,
    channel_multipliers=(1, 1, 2, 4),
    num_res_blocks=1,
    latent_channels=4,
    embedding_dim=4,
    resolution=SIDE,
)


@dataclass
class Comparison:
    """Medians of both sides."""

    seconds: dict[str, float]
    """Processor time of a step."""
    megabytes: dict[str, float]
    """The most that the process has during the steps, the frozen networks with it, which previews need."""
    bytes_per_sample: dict[str, float]
    """Of the shards."""
    apart: float
    """Largest relative difference of the losses."""

    def __str__(self) -> str:
        rows = [f"Training step on stored latents and states, or with the encoders (losses {self.apart:.1e} apart)"]
        for side, seconds in self.seconds.items():
            room = f"{self.megabytes[side]:6.0f} MB  {self.bytes_per_sample[side]:9,.0f} B a sample on disk"
            rows.append(f"  {side:<10} {seconds:6.3f} CPU s  {room}")
        ratio = self.seconds["online"] / self.seconds["stored"]
        return "\n".join([*rows, f"  ratio      {ratio:6.2f}"])


def races(folder: Path) -> list[Comparison]:
    """One comparison, both sides in turns."""
    urls = _prepare(folder)
    found: dict[str, list[tuple[float, float, list[float]]]] = {side: [] for side in urls}
    for _ in range(ROUNDS):
        for side, url in urls.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[side].append(pool.apply(measure, (folder, url)))
    losses = {side: rows[0][2] for side, rows in found.items()}
    return [
        Comparison(
            {side: median(row[0] for row in rows) for side, rows in found.items()},
            {side: median(row[1] for row in rows) for side, rows in found.items()},
            {side: sum(f.stat().st_size for f in Path(url).glob("*.tar")) / NUM_PICTURES for side, url in urls.items()},
            max(abs(a / b - 1) for a, b in zip(losses["stored"], losses["online"], strict=True)),
        )
    ]


def measure(folder: Path, url: str) -> tuple[float, float, list[float]]:
    """(processor seconds of a step, peak megabytes, losses) of a fresh process."""
    torch.set_num_threads(1)
    process = processes.start()
    package, text = load_package(folder / "first"), _text(folder)
    shape = UNetConfig(
        channels=64, channel_multipliers=(1, 2), attention_factors=(1, 2), num_heads=4, context_dim=_width(text)
    )
    config = DiffusionStageConfig(unet=shape, text=text, sampling=SamplingConfig(), preview_prompts=("a red circle",))
    engine = EngineConfig(kind="accelerate", precision="bf16")
    stage = DiffusionStage(config, engine, OptimConfig(), process, 0, load_autoencoder(package))
    data = DataConfig(train=url, image_size=SIDE, num_lanes=8, num_decode_threads=1, crop="center")
    losses, spent = [], []
    forget_peak()
    with Loader(url, data, 0, batch_size=BATCH) as loader:
        for step, batch in enumerate(islice(loader.batches(0), STEPS + 1)):
            began = time.process_time()
            loss = stage.train_step(batch, step, step * BATCH, NUM_PICTURES)["diffusion_loss"]
            spent.append(time.process_time() - began)
            losses.append(float(loss))
    processes.finish()
    return median(spent[1:]), peak(), losses


def _prepare(folder: Path) -> dict[str, str]:
    """A first stage, a tower, shards of pictures and of what both make of them: the address of each side's data."""
    declare_missing_operators()
    import open_clip

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    first = Autoencoder(FIRST, seed=0)
    save_package(folder / "first", AUTOENCODER_KIND, first.state_dict(), FIRST.model_dump(mode="json"), {}, "")
    torch.save(open_clip.create_model(TOWER, pretrained=None).state_dict(), folder / "clip.pt")
    pictures, shards, latents = (str(folder / name) for name in ("pictures", "shards", "latents"))
    for words in (
        ["draw", "shapes", "--out", pictures, "--num", str(NUM_PICTURES), "--size", str(SIDE)],
        ["shard", pictures, "--out", shards],
    ):
        subprocess.run([sys.executable, "-m", "data_tools", *words], check=True, stdout=subprocess.DEVNULL)
    config = PrecomputeConfig()
    tower = build_text_tower(_text(folder))
    encoder = LatentEncoder(load_package(folder / "first"), config, torch.device("cpu"), tower)
    precompute(encoder, shards, latents, config)
    return {"stored": latents, "online": shards}


def _text(folder: Path) -> PretrainedTextConfig:
    return PretrainedTextConfig(name=TOWER, weights=str(folder / "clip.pt"))


def _width(text: PretrainedTextConfig) -> int:
    return build_text_tower(text).width
