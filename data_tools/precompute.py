"""Images -> latents, once: every picture of a dataset through a frozen autoencoder, into shards that mirror the source.

Each source shard becomes one latent shard of the same name, keys and order. A shard with a stats file is done, so the
same command again goes on where it stopped. Ranks take every W-th shard and never talk: who finds all shards done
writes the manifest. Called by `tessera-data precompute`.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data_tools.progress import track
from pipeline import storage
from pipeline.checkpoint.package import Package
from pipeline.config import Config, UserError, config_differences
from pipeline.data.batch import Batch
from pipeline.data.dataset import DataConfig
from pipeline.data.latents import LATENT, TEXT_STATES, LatentStamp, array_bytes
from pipeline.data.loader import OrderedReader
from pipeline.data.shards import MANIFEST_NAME, Manifest, ShardRecord, stats_name, write_shard
from pipeline.data.tar import TarSample
from pipeline.data.transforms import to_model
from pipeline.models.packaged import load_autoencoder
from pipeline.models.text import TextTower


class PrecomputeConfig(Config):
    """How pictures are encoded."""

    image_size: int | None = Field(default=None, gt=0)
    """Side in pixels of the square cut from the middle of each picture; None is the autoencoder's resolution."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored latents: float32 equals encoding in training but for rounding, float16 is half as large."""
    batch_size: int = Field(default=64, gt=0)
    """Pictures encoded at once."""
    max_bad_fraction: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of unreadable pictures at which to stop; fewer are left out."""


class LatentEncoder:
    """Pictures to stored latents, by one exported autoencoder on one device; captions too, by a frozen text tower."""

    def __init__(
        self, package: Package, config: PrecomputeConfig, device: torch.device, text: TextTower | None = None
    ) -> None:
        assert text is None or text.frozen, "states of a tower that learns would be stale"
        package = package.autoencoder or package
        self._text = None if text is None else text.to(device)
        self._autoencoder = load_autoencoder(package).to(device)
        self._device = device
        self._dtype = config.dtype
        self.digest = package.digest
        self.image_size = config.image_size or self._autoencoder.config.resolution
        factor = self._autoencoder.downsample_factor
        if self.image_size % factor:
            raise UserError(f"--image-size {self.image_size}: not a multiple of the autoencoder's factor {factor}")

    def stamp(self, source_digest: str) -> LatentStamp:
        """What the manifest of the latents says about their origin."""
        side = self.image_size // self._autoencoder.downsample_factor
        shape = (self._autoencoder.config.embedding_dim, side, side)
        text_digest = self._text.digest() if self._text else None
        return LatentStamp(self.digest, self._dtype, shape, self.image_size, "center", source_digest, text_digest)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> np.ndarray:
        """uint8 [B, 3, H, W] to latents before quantisation, not normalised, [B, C, h, w] of the stored type."""
        # The convolutions of CPUs and GPUs like channels last best: a third less time on a CPU.
        pixels = to_model(images.to(self._device)).contiguous(memory_format=torch.channels_last)  # [B, 3, H, W]
        latents = self._autoencoder.encode_raw(pixels)  # [B, C, h, w]
        return np.ascontiguousarray(latents.float().cpu().numpy(), dtype=self._dtype)

    @torch.inference_mode()
    def members(self, batch: Batch) -> Iterator[dict[str, bytes]]:
        """The arrays of every sample, by extension; captions as they are: their dropout belongs to training."""
        assert batch.images is not None
        states = None
        if self._text is not None:
            states = self._text.encode(batch.captions).float().cpu().numpy().astype(self._dtype)  # [B, T, D]
        for row, latent in enumerate(self(batch.images)):
            arrays = {LATENT: array_bytes(latent)}
            if states is not None:
                arrays[TEXT_STATES] = array_bytes(states[row][states[row].any(axis=1)])  # no masked padding
            yield arrays


def precompute(
    encoder: LatentEncoder, data: str, out: str, config: PrecomputeConfig, rank: int = 0, world_size: int = 1
) -> dict[str, Any]:
    """Write this rank's shards of the latents of `data` that `out` does not hold yet.

    Returns:
        A summary: samples and seconds of this call, and the manifest's digest, None while other ranks still work.

    Raises:
        UserError: `data` holds no pictures, or `out` another dataset or the latents of another autoencoder.
    """
    read = DataConfig(train=data, image_size=encoder.image_size, max_bad_fraction=config.max_bad_fraction)
    with OrderedReader(data, read, batch_size=config.batch_size) as reader:
        source = reader.manifest
        if source.kind != "images":
            raise UserError(f"{data}: holds {source.kind}; --data takes shards of pictures")
        plan = encoder.stamp(reader.digest).as_dict()
        done = _finished(out, plan)
        shards = _shards_of_rank(source, rank, world_size)
        todo = {name: samples for name, samples in shards.items() if name not in done}
        started, cpu_started, written, left_out = time.monotonic(), time.process_time(), 0, 0
        for name, samples in track(todo.items(), len(todo), f"encoding into {out}"):
            record = _write(encoder, reader.batches(samples.start, samples.stop), out, name, len(samples), plan)
            written += record.num_samples
            left_out += len(samples) - record.num_samples
    return {
        "out": out,
        "shards_written": len(todo),
        "shards_skipped": len(shards) - len(todo),
        "samples": written,
        "left_out": left_out,
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "digest": _finish(out, source, plan),
    }


def _shards_of_rank(source: Manifest, rank: int, world_size: int) -> dict[str, range]:
    """Name and sample ids of every W-th shard."""
    bounds = pairwise(accumulate((shard.num_samples for shard in source.shards), initial=0))
    named = [(shard.name, range(*bound)) for shard, bound in zip(source.shards, bounds, strict=True)]
    return dict(named[rank::world_size])


def _finished(out: str, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Stats by shard name of the shards that are done.

    Raises:
        UserError: `out` holds anything else than latents of this plan.
    """
    names = storage.list_names(out)
    stats = [storage.read_json(storage.join(out, name)) for name in names if name.endswith("_stats.json")]
    if not stats and MANIFEST_NAME in names:
        raise UserError(f"{out}: holds another dataset; choose another --out")
    for row in stats:
        changes = config_differences(row.get("plan", {}), plan)
        if changes:
            raise UserError(f"{out}: holds other shards ({'; '.join(changes)}); choose another --out")
    return {row["shard"]["name"]: row for row in stats}


def _write(
    encoder: LatentEncoder, batches: Iterator[Batch], out: str, name: str, count: int, plan: Mapping[str, Any]
) -> ShardRecord:
    """Encode one shard and write tar, index and, last, stats."""
    started = time.time()
    record = write_shard(out, name, _samples(encoder, batches))
    ended = time.time()
    stats = {
        "count": count,
        "successes": record.num_samples,
        "start_time": started,
        "end_time": ended,
        "duration": ended - started,
        "plan": dict(plan),
        "shard": asdict(record),
    }
    storage.write_json(storage.join(out, stats_name(name)), stats)
    return record


def _samples(encoder: LatentEncoder, batches: Iterator[Batch]) -> Iterator[TarSample]:
    """Latent, text states, caption and metadata of every picture, in order."""
    for batch in batches:
        rows = zip(batch.keys, batch.captions, batch.metadata, encoder.members(batch), strict=True)
        for key, caption, metadata, arrays in rows:
            yield TarSample(key, {**arrays, "txt": caption.encode(), "json": metadata})


def _finish(out: str, source: Manifest, plan: Mapping[str, Any]) -> str | None:
    """Write the manifest if every shard is done, whoever did it; its digest."""
    done = _finished(out, plan)
    if any(shard.name not in done for shard in source.shards):
        return None
    records = tuple(ShardRecord(**done[shard.name]["shard"]) for shard in source.shards)
    manifest = Manifest("latents", records, fingerprint=source.fingerprint, stamp=dict(plan))
    manifest.save(out)
    return manifest.digest
