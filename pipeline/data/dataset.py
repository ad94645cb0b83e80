"""The datasets of a run: their config, their checked manifests, and the plan of all their samples.

Called by the loader and by `tessera-data verify-epoch`; the config is part of every experiment.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config import Config, UserError
from pipeline.data.buckets import BatchesOfBuckets, Buckets, load_buckets
from pipeline.data.latents import check_autoencoder, read_stamp
from pipeline.data.members import Members, pack
from pipeline.data.mixture import Mixture, shares_of
from pipeline.data.order import SampleOrder
from pipeline.data.plan import Axis, Plan, next_block
from pipeline.data.selection import Selection, load_selection
from pipeline.data.shards import Manifest, load_manifest


class PartConfig(Config):
    """One of several datasets."""

    url: str
    """Folder or URL of its shards."""
    weight: float = Field(gt=0)
    """Its share of the samples, relative to the weights of the others."""


class DataConfig(Config):
    """Where the samples are and how they become batches."""

    train: str | Annotated[tuple[PartConfig, ...], Field(min_length=1)]
    """Folder or URL of the training shards (with their manifest.json), or a list of them with `url` and `weight`; any
    tars where `order` is stream."""
    validation: str | None = None
    """The same for validation; None validates nothing."""
    image_size: int = Field(default=256, gt=0)
    """Side of the training pictures in pixels; latent shards bring their own size."""
    crop: Literal["random", "center"] = "random"
    """How a picture that is not square is cut in training; validation always takes the middle."""
    aspect_buckets: bool = False
    """Train on pictures of several shapes, those of `tessera-data buckets`; each batch is of one shape."""
    captions: tuple[str, ...] = ()
    """Fields of a sample's `json` that hold captions, each a text or a list of texts: training draws one for each
    sample and epoch, validation takes the first. None named: the caption of the shard."""
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

    @property
    def urls(self) -> list[str]:
        """All datasets with a manifest that the run reads."""
        indexed = [] if self.order == "stream" else [part.url for part in parts_of(self.train)]
        return indexed + ([self.validation] if self.validation else [])

    @property
    def stream_url(self) -> str:
        """What a run of `order: stream` reads.

        Raises:
            UserError: several datasets.
        """
        if not isinstance(self.train, str):
            raise UserError("data.train: order: stream takes one list of tars; several datasets need an index")
        return self.train


@dataclass(frozen=True)
class Dataset:
    """One dataset of a run, opened."""

    url: str
    manifest: Manifest
    selection: Selection | None
    first_id: int
    """Id of its first sample; the ids of several datasets stand one behind the other."""

    @property
    def digest(self) -> str:
        """Of the manifest and the selection."""
        return self.manifest.digest if self.selection is None else self.selection.digest

    def members(self) -> Members | None:
        """The samples that count; None is all."""
        return None if self.selection is None else self.selection.members()


def parts_of(train: str | Sequence[PartConfig]) -> tuple[PartConfig, ...]:
    """The datasets of `data.train`, also where it names just one."""
    return (PartConfig(url=train, weight=1.0),) if isinstance(train, str) else tuple(train)


def open_datasets(
    train: str | Sequence[PartConfig], block_samples: int, expect_autoencoder: str | None = None
) -> tuple[Dataset, ...]:
    """The manifests and selections of all datasets of a run.

    Raises:
        UserError: no manifest, no samples, latents of another autoencoder than `expect_autoencoder`, or datasets that
            do not go together.
    """
    opened: list[Dataset] = []
    for part in parts_of(train):
        manifest = load_dataset(part.url, expect_autoencoder)
        last = opened[-1].first_id + opened[-1].manifest.num_samples if opened else 0
        first_id = next_block(last, block_samples)
        opened.append(Dataset(part.url, manifest, load_selection(part.url, manifest), first_id))
    for other in opened[1:]:
        if _form(other) != _form(opened[0]):
            raise UserError(f"data.train: {other.url} holds {_form(other)}, {opened[0].url} {_form(opened[0])}")
    return tuple(opened)


def _form(dataset: Dataset) -> str:
    """What the arrays of its samples are like, in words; equal for datasets that can share a batch."""
    if dataset.manifest.kind == "images":
        return "images"
    stamp = read_stamp(dataset.manifest, dataset.url)
    return f"latents {stamp.latent_shape} of {stamp.autoencoder_digest[:12]}, text {str(stamp.text_digest)[:12]}"


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


def open_buckets(datasets: Sequence[Dataset], config: DataConfig) -> Buckets | None:
    """The aspect-ratio buckets of the dataset; None where the config wants none.

    Raises:
        UserError: several datasets, latents, or no buckets beside the shards.
    """
    if not config.aspect_buckets:
        return None
    if len(datasets) > 1 or datasets[0].manifest.kind != "images":
        raise UserError("data.aspect_buckets: takes one dataset of pictures, not several and not latents")
    return load_buckets(datasets[0].url, datasets[0].manifest)


def make_plan(
    datasets: Sequence[Dataset], buckets: Buckets | None, config: DataConfig, seed: int, batch_size: int
) -> Plan:
    """The order of all training samples; `batch_size`, of a global batch, matters to buckets alone."""
    if buckets is not None:
        axes = _axes_of_buckets(datasets[0], buckets, config, seed)
        counts = tuple(axis.order.num_samples for axis in axes)
        return Plan(axes, BatchesOfBuckets(counts, batch_size, seed))
    parts = [(dataset.members(), dataset) for dataset in datasets]
    axes = _axes(parts, config, seed)
    if len(axes) == 1:
        return Plan(axes, None)
    shares = shares_of([part.weight for part in parts_of(config.train)])
    return Plan(axes, Mixture(shares, config.num_lanes, seed))


def plan_digest(datasets: Sequence[Dataset], buckets: Buckets | None, config: DataConfig, batch_size: int) -> str:
    """What a checkpoint remembers of its data: of one dataset the digest of its manifest and selection."""
    if buckets is not None:
        return _digest_of([datasets[0].digest, buckets.digest, batch_size])
    if len(datasets) == 1:
        return datasets[0].digest
    shares = shares_of([part.weight for part in parts_of(config.train)])
    return _digest_of([[dataset.digest, share] for dataset, share in zip(datasets, shares, strict=True)])


def joined_digest(digests: Sequence[str]) -> str:
    """One digest of several datasets; of one it is its own."""
    return digests[0] if len(digests) == 1 else _digest_of(list(digests))


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _axes(parts: Sequence[tuple[Members | None, Dataset]], config: DataConfig, seed: int) -> tuple[Axis, ...]:
    """One axis of each set of samples, one behind the other."""
    axes: list[Axis] = []
    for members, dataset in parts:
        count = dataset.manifest.num_samples if members is None else len(members)
        last = axes[-1].first_place + axes[-1].order.num_samples if axes else 0
        order = SampleOrder(count, seed, config.num_lanes, config.block_samples)
        axes.append(Axis(order, next_block(last, config.block_samples), dataset.first_id, members))
    return tuple(axes)


def _axes_of_buckets(dataset: Dataset, buckets: Buckets, config: DataConfig, seed: int) -> tuple[Axis, ...]:
    """One axis of each bucket that holds a sample."""
    chosen = (buckets.numbers == number for number in range(len(buckets.shapes)))
    if dataset.selection is not None:
        keep = dataset.selection.keep
        chosen = (inside & keep for inside in chosen)
    return _axes([(Members(pack(inside)), dataset) for inside in chosen if inside.any()], config, seed)
