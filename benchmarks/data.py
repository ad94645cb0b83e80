"""Our loader beside webdataset's own, on the same shards: images a second, and how fast each goes on in mid-epoch.

Both sides decode every picture to uint8 and stack batches, with two decoding workers: threads here, processes there.
"""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset

from benchmarks.race import Result, Side, Stopwatch, race
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader

NUM_PICTURES, SIZE, BATCH = 4000, 64, 64
NUM_TIMED = 40
"""Batches of a round."""
RESUME_AT = 3200
"""Samples of the epoch that an interrupted run has seen."""
PEER = f"webdataset {webdataset.__version__}"


def make_shards(folder: Path) -> Path:
    """Shards of drawn shapes, by the public commands."""
    pictures, shards = folder / "pictures", folder / "shards"
    for words in (
        ["draw", "shapes", "--out", pictures, "--num", NUM_PICTURES, "--size", SIZE, "--seed", 1],
        ["shard", pictures, "--out", shards],
    ):
        subprocess.run([sys.executable, "-m", "data_tools", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return shards


def races(shards: Path) -> list[Result]:
    """Speed, then resuming."""
    return [
        race(
            "Images from shards",
            "images/s",
            [Side("ours", lambda w: ours(shards, w)), Side(PEER, lambda w: theirs(shards, w))],
        ),
        race(
            f"First batch after {RESUME_AT} samples of an epoch",
            "times/s",
            [Side("ours", lambda w: our_resume(shards, w)), Side(PEER, lambda w: their_resume(shards, w))],
        ),
    ]


def open_loader(shards: Path) -> Loader:
    """Ours."""
    config = DataConfig(train=str(shards), image_size=SIZE, num_lanes=8, num_decode_threads=2)
    return Loader(str(shards), config, seed=0, batch_size=BATCH)


def ours(shards: Path, watch: Stopwatch) -> int:
    """The timed batches of an epoch, after the first."""
    with open_loader(shards) as loader:
        batches = loader.batches()
        next(batches)
        with watch.running():
            return sum(len(batch.keys) for batch in islice(batches, NUM_TIMED))


def theirs(shards: Path, watch: Stopwatch) -> int:
    """The same through webdataset's pipeline in two worker processes."""
    dataset = pipeline_of(shards).compose(as_batches)
    batches = iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=2))
    next(batches)
    with watch.running():
        return sum(len(captions) for _, captions in islice(batches, NUM_TIMED))


def our_resume(shards: Path, watch: Stopwatch) -> int:
    """A fresh loader at the position."""
    with watch.running(), open_loader(shards) as loader:
        next(loader.batches(RESUME_AT))
    return 1


def their_resume(shards: Path, watch: Stopwatch) -> int:
    """A fresh pipeline that passes over what was seen, undecoded: the cheapest way that a tar stream has."""
    with watch.running():
        next(as_batches(islice(iter(pipeline_of(shards)), RESUME_AT, None)))
    return 1


def pipeline_of(shards: Path) -> webdataset.WebDataset:
    """webdataset's usual chain: shuffled shards, a shuffle buffer, samples still encoded."""
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    return webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000)


def as_batches(samples: Iterator[dict[str, bytes]]) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Decode with webdataset's own decoder, and stack."""
    decode = webdataset.imagehandler("rgb8")
    while block := list(islice(samples, BATCH)):
        pictures = np.stack([decode("png", sample["png"]) for sample in block])
        yield torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), [sample["txt"].decode() for sample in block]
