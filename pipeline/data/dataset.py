"""Opening a dataset: its config, its checked manifest, and the chain index -> source -> decoder -> reader.

Called by the loader; the config is part of every experiment.
"""

from typing import Literal

from pydantic import Field

from pipeline.config import Config, UserError
from pipeline.data.index import BlockIndex
from pipeline.data.latents import LatentDecoder, check_autoencoder, read_stamp
from pipeline.data.quarantine import Quarantine
from pipeline.data.reader import SampleReader
from pipeline.data.samples import Decoder
from pipeline.data.shards import Manifest, load_manifest
from pipeline.data.source import BlockSource
from pipeline.randomness import Draws


class DataConfig(Config):
    """Where the samples are and how they become batches."""

    train: str
    """Folder or URL of the training shards (with their manifest.json); any tars where `order` is stream."""
    validation: str | None = None
    """The same for validation; None validates nothing."""
    image_size: int = Field(default=256, gt=0)
    """Side of the training pictures in pixels; latent shards bring their own size."""
    crop: Literal["random", "center"] = "random"
    """How a picture that is not square is cut in training; validation always takes the middle."""
    random_flip: bool = False
    """Mirror half of the training pictures; wrong where captions say left and right."""
    order: Literal["exact", "stream"] = "exact"
    """exact: by the index, resumable at any sample; stream: by webdataset's own pipeline, for tars without an index."""
    stream_shuffle_samples: int = Field(default=1000, gt=0)
    """Samples in the shuffle buffer of a stream."""
    num_lanes: int = Field(default=240, gt=0)
    """Streams that advance together: as many blocks mix in a batch. Best a multiple of every number of ranks."""
    block_samples: int = Field(default=64, gt=0)
    """Neighbouring samples that are fetched in one read; 1 to 4 MB are a good size for object storage."""
    num_fetch_threads: int = Field(default=16, gt=0)
    """Reads under way at once, for each rank."""
    num_decode_threads: int = Field(default=2, gt=0)
    """Threads that decode pictures, for each rank."""
    prefetch_batches: int = Field(default=4, gt=0)
    """Decoded batches that wait for the trainer."""
    fetch_ahead_batches: int = Field(default=16, gt=0)
    """Batches whose bytes are fetched before it is their turn."""
    max_bad_fraction: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the samples that may turn out unreadable before the run stops; each is replaced and written down."""


def load_dataset(url: str, expect_autoencoder: str | None = None) -> Manifest:
    """The manifest of a dataset that can be trained on.

    Raises:
        UserError: no manifest, no samples, or latents of another autoencoder than `expect_autoencoder`.
    """
    manifest = load_manifest(url)
    if manifest.num_samples == 0:
        raise UserError(f"{url}: a dataset without samples; look at its *_stats.json, or shard another input")
    if manifest.kind == "latents" and expect_autoencoder is not None:
        check_autoencoder(read_stamp(manifest, url), expect_autoencoder, url)
    return manifest


def open_reader(
    url: str, manifest: Manifest, config: DataConfig, draws: Draws | None, quarantine: Quarantine, num_blocks: int
) -> SampleReader:
    """A reader of the dataset.

    Args:
        draws: random numbers of training; None reads without any random choice.
        num_blocks: blocks that stay in memory.
    """
    index = BlockIndex(url, manifest, config.block_samples)
    decoder = _decoder(url, manifest, config, draws)
    source = BlockSource(url, index, num_blocks, config.num_fetch_threads)
    return SampleReader(index, source, decoder, quarantine, config.num_decode_threads)


def _decoder(url: str, manifest: Manifest, config: DataConfig, draws: Draws | None) -> Decoder:
    """The decoder for what the manifest holds."""
    if manifest.kind == "images":
        from pipeline.data.pictures import PictureDecoder  # brings OpenCV

        return PictureDecoder(config.image_size, draws, config.crop == "random", config.random_flip)
    if config.random_flip:
        raise UserError(f"data.random_flip: {url} holds latents, which cannot be mirrored; set it to false")
    return LatentDecoder(read_stamp(manifest, url))
