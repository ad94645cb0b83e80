"""The chain from a plan to batches: index, source of blocks, decoder, reader. Called by the loader."""

from collections.abc import Sequence

from pipeline.config import UserError
from pipeline.data.buckets import Buckets
from pipeline.data.captions import CaptionChoice
from pipeline.data.dataset import DataConfig, Dataset
from pipeline.data.index import BlockIndex, ShardTable
from pipeline.data.latents import LatentDecoder, read_stamp
from pipeline.data.order import SampleOrder
from pipeline.data.plan import Axis, Plan
from pipeline.data.quarantine import Quarantine
from pipeline.data.reader import SampleReader
from pipeline.data.samples import Decoder
from pipeline.data.source import BlockSource
from pipeline.randomness import Draws


def open_reader(
    datasets: Sequence[Dataset],
    plan: Plan,
    config: DataConfig,
    draws: Draws | None,
    quarantine: Quarantine,
    num_blocks: int,
    buckets: Buckets | None = None,
) -> SampleReader:
    """A reader of the places of a plan.

    Args:
        draws: random numbers of training; None reads without any random choice.
        num_blocks: blocks that stay in memory.
        buckets: shapes of the pictures; None is a square of the config's `image_size`.
    """
    decoder = open_decoder(datasets[0], config, draws, buckets)
    shards = ShardTable([(each.url, each.manifest.shards, each.first_id) for each in datasets])
    index = BlockIndex(shards, plan, config.block_samples)
    source = BlockSource(index, num_blocks, config.num_fetch_threads)
    return SampleReader(index, source, decoder, quarantine, config.num_decode_threads)


def whole_plan(datasets: Sequence[Dataset], config: DataConfig) -> Plan:
    """The places of one dataset without any order: place i is sample i."""
    order = SampleOrder(datasets[0].manifest.num_samples, 0, 1, config.block_samples)
    return Plan((Axis(order, 0, 0),), None)


def open_decoder(dataset: Dataset, config: DataConfig, draws: Draws | None, buckets: Buckets | None) -> Decoder:
    """The decoder for what the manifest holds."""
    captions = CaptionChoice(config.captions, draws)
    if dataset.manifest.kind == "images":
        from pipeline.data.pictures import PictureDecoder  # brings OpenCV

        square = (config.image_size, config.image_size)
        shape_of = buckets.shape_of if buckets else lambda sample_id: square
        return PictureDecoder(shape_of, captions, draws, config.crop == "random", config.random_flip)
    if config.random_flip:
        raise UserError(f"data.random_flip: {dataset.url} holds latents, which cannot be mirrored; set it to false")
    stamp = read_stamp(dataset.manifest, dataset.url)
    if config.captions and stamp.text_digest:
        raise UserError(f"data.captions: {dataset.url} holds the text states of one caption; precompute without --text")
    return LatentDecoder(stamp, captions)
