"""Our loader and its peers behind one face, each used as its own documentation shows, on the same pictures.

Called by `benchmarks.loading` (speed) and `benchmarks.resume` (exactness). Peers are imported by name where they are
opened: they live in an environment of their own, whose versions of other packages are not the project's.
"""

import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image

SIDE = 256
PACKAGES = {"webdataset": "webdataset", "streaming": "mosaicml-streaming", "litdata": "litdata",
            "energon": "megatron-energon"}  # fmt: skip
MODULES = {"ours": "pipeline.data.loader", "webdataset": "webdataset", "streaming": "streaming", "litdata": "litdata",
           "energon": "megatron.energon"}  # fmt: skip

Rows = list[tuple[str, Any]]
"""Keys with pictures: a uint8 tensor [3, 256, 256], or bytes."""


class Side(Protocol):
    """One rank of one competitor; a group of several ranks has been made by the time it is opened.

    It is opened with the states of all ranks of the run before it, in their order, or None.
    """

    def batches(self) -> Iterator[Rows]:
        """From where it was opened."""
        ...

    def state(self) -> Any:
        """What a checkpoint would hold after the last batch that was taken."""
        ...

    def close(self) -> None:
        """Let go of threads, processes and memory."""
        ...


def cut(data: bytes) -> torch.Tensor:
    """The peers' usual pixels: Pillow, a random window, channels first; the pictures have 256 rows already."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    left = random.randrange(pixels.shape[1] - SIDE + 1)
    return torch.from_numpy(np.ascontiguousarray(pixels[:, left : left + SIDE].transpose(2, 0, 1)))  # [3, 256, 256]


def collate(rows: Rows) -> Rows:
    """Stack in the worker, as a DataLoader does, so that one tensor travels."""
    if isinstance(rows[0][1], bytes):
        return rows
    return list(zip([key for key, _ in rows], torch.stack([picture for _, picture in rows]), strict=True))


class Ours:
    """Tessera, whose workers are threads.

    From S3 in blocks of 3 MB, as its page has it, of which 16 are mixed: about as many samples as in the buffers of
    webdataset's two workers.
    """

    LOCAL: ClassVar[dict[str, int]] = {"num_lanes": 48, "block_samples": 32}
    REMOTE: ClassVar[dict[str, int]] = {"num_lanes": 16, "block_samples": 128, "fetch_ahead_batches": 64}

    def __init__(self, root: Path, raw: bool, rank: int, world: int, workers: int, batch: int, states: Any) -> None:
        from pipeline.data.dataset import DataConfig
        from pipeline.data.loader import Loader

        url = os.environ.get("LOADER_SHARDS", str(root / "shards"))
        recipe = self.REMOTE if "LOADER_SHARDS" in os.environ else self.LOCAL
        config = DataConfig(train=url, num_decode_threads=max(1, workers), **recipe)
        self.loader = Loader(url, config, 0, rank, world, batch_size=batch)
        self.seen, self.batch = states[0] if states else 0, batch
        if raw:
            self.loader._reader._decoder = _Raw()

    def batches(self) -> Iterator[Rows]:
        for batch in self.loader.batches(self.seen):
            self.seen += self.batch
            pictures = batch.metadata if batch.images is None else batch.images
            yield list(zip(batch.keys, pictures, strict=True))

    def state(self) -> int:
        return self.seen

    def close(self) -> None:
        self.loader.close()


class _Raw:
    """A decoder that leaves the bytes as they are."""

    def __call__(self, sample: Any, epoch: int, sample_id: int) -> Any:
        from pipeline.data.samples import Decoded

        return Decoded(sample.key, "", np.empty(0), sample.members["jpg"])

    def stack(self, samples: Any) -> Any:
        from pipeline.data.samples import Arrays

        return Arrays()


class Webdataset:
    """webdataset has no state: what was seen is skipped, undecoded."""

    def __init__(self, root: Path, raw: bool, rank: int, world: int, workers: int, batch: int, states: Any) -> None:
        import webdataset

        urls = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
        urls = os.environ["LOADER_URLS"].split("\n") if "LOADER_URLS" in os.environ else urls
        self.steps, self.size = states[0] if states else 0, batch // world
        dataset = webdataset.WebDataset(
            urls, shardshuffle=len(urls), seed=0, nodesplitter=webdataset.split_by_node, empty_check=False
        ).shuffle(1000, seed=0)
        skip = self.steps * self.size // max(1, workers)
        dataset = dataset.compose(partial(_skipped, skip=skip))
        self.loader = webdataset.WebLoader(
            dataset.compose(partial(_as_batches, size=self.size, raw=raw)), batch_size=None, num_workers=workers
        )

    def batches(self) -> Iterator[Rows]:
        for rows in self.loader:
            self.steps += 1
            yield rows

    def state(self) -> int:
        return self.steps

    def close(self) -> None:
        del self.loader


def _skipped(samples: Any, skip: int) -> Iterator[Any]:
    return islice(samples, skip, None)


def _as_batches(samples: Any, size: int, raw: bool) -> Iterator[Rows]:
    samples = iter(samples)
    while rows := [(s["__key__"], s["jpg"] if raw else cut(s["jpg"])) for s in islice(samples, size)]:
        yield collate(rows)


class Streaming:
    """Mosaic's StreamingDataset with its loader, from its own format."""

    def __init__(self, root: Path, raw: bool, rank: int, world: int, workers: int, batch: int, states: Any) -> None:
        from pipeline.torchvision_shim import declare_missing_operators

        declare_missing_operators()
        streaming = import_module("streaming")
        import_module("streaming.base.util").clean_stale_shared_memory()  # as its pages say of runs that were killed
        size = batch // world

        class Pictures(streaming.StreamingDataset):
            def __getitem__(self, at: Any) -> tuple[str, Any]:
                row = super().__getitem__(at)
                return row["key"], row["jpg"] if raw else cut(row["jpg"])

        dataset = Pictures(
            local=str(root / "mds"), shuffle=True, shuffle_seed=0, num_canonical_nodes=4, batch_size=size
        )
        self.loader = streaming.StreamingDataLoader(dataset, batch_size=size, num_workers=workers, collate_fn=_columns)
        if states is not None:
            self.loader.load_state_dict(states[0])  # its pages save rank 0's

    def batches(self) -> Iterator[Rows]:
        for batch in self.loader:
            yield list(zip(batch["key"], batch["jpg"], strict=True))

    def state(self) -> Any:
        return self.loader.state_dict()

    def close(self) -> None:
        del self.loader


def _columns(rows: Rows) -> dict[str, Any]:
    """Its loader counts samples by the length of a dict's first value."""
    keys, pictures = zip(*collate(rows), strict=True)
    return {"key": list(keys), "jpg": pictures}


class Litdata:
    """litData's StreamingDataset with its loader, from its own format."""

    def __init__(self, root: Path, raw: bool, rank: int, world: int, workers: int, batch: int, states: Any) -> None:
        litdata = import_module("litdata")

        class Pictures(litdata.StreamingDataset):
            def __getitem__(self, at: Any) -> tuple[str, Any]:
                row = super().__getitem__(at)
                return row["key"], row["jpg"] if raw else cut(row["jpg"])

        dataset = Pictures(str(root / "lit"), shuffle=True, seed=0, drop_last=False)
        self.loader = litdata.StreamingDataLoader(
            dataset, batch_size=batch // world, num_workers=workers, collate_fn=collate, shuffle=True, drop_last=False
        )
        if states is not None:
            self.loader.load_state_dict(states[0])

    def batches(self) -> Iterator[Rows]:
        yield from self.loader

    def state(self) -> Any:
        return self.loader.state_dict()

    def close(self) -> None:
        del self.loader


class Energon:
    """Megatron-Energon, from the same tars by the index that stands beside them."""

    def __init__(self, root: Path, raw: bool, rank: int, world: int, workers: int, batch: int, states: Any) -> None:
        from pipeline.torchvision_shim import declare_missing_operators

        declare_missing_operators()
        energon = import_module("megatron.energon")

        class Pictures(energon.DefaultTaskEncoder):
            decoder = None

            @energon.stateless
            def encode_sample(self, sample: Any) -> Any:
                return sample if raw else replace(sample, image=cut(sample.image))

            def batch(self, samples: Any) -> Any:
                return collate([(sample.__key__.rpartition("/")[2], sample.image) for sample in samples])

        where = energon.WorkerConfig(rank=rank, world_size=world, num_workers=workers)
        dataset = energon.get_train_dataset(
            str(root / "shards"), worker_config=where, batch_size=batch // world, shuffle_buffer_size=1000,
            max_samples_per_sequence=100, task_encoder=Pictures(),
        )  # fmt: skip
        self.loader = energon.get_savable_loader(dataset)
        if states is not None:
            self.loader.restore_state_global(states)

    def batches(self) -> Iterator[Rows]:
        yield from self.loader

    def state(self) -> Any:
        return self.loader.save_state_rank()

    def close(self) -> None:
        del self.loader


SIDES: dict[str, type] = {
    "ours": Ours, "webdataset": Webdataset, "streaming": Streaming, "litdata": Litdata, "energon": Energon,
}  # fmt: skip


def title(name: str) -> str:
    """With its version, of the interpreter that has it."""
    if name == "ours":
        return name
    program = f"from importlib.metadata import version; print(version({PACKAGES[name]!r}))"
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return f"{PACKAGES[name]} {found.stdout.strip()}"
