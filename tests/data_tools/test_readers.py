"""One write, seven readers: each opens the shards and finds every key and every byte."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.index import index_dataset
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from pipeline.data.tar import TarSample, parse_samples
from pipeline.torchvision_shim import declare_missing_operators

NUM = 11


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, the last one short, and one input that fails."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for n in range(NUM):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{n}.jpg", quality=90)
        (folder / f"{n}.txt").write_text(f"caption {n} é")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    out = tmp_path_factory.mktemp("out")
    shard_dataset(
        open_source(str(folder)), "x", str(out), ShardConfig(resize="none", samples_per_shard=5), WorkConfig()
    )
    return out


@pytest.fixture(scope="module")
def truth(shards: Path) -> dict[str, TarSample]:
    """Every sample by its key, read by our own code."""
    return {s.key: s for path in sorted(shards.glob("*.tar")) for s in parse_samples(path.read_bytes())}


def test_webdataset(shards: Path, truth: dict[str, TarSample]) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(f"{shards}/{{00000..00002}}.tar", shardshuffle=False))
    assert {row["__key__"]: {e: row[e] for e in ("jpg", "json", "txt")} for row in found} == {
        key: sample.members for key, sample in truth.items()
    }


def test_wids(shards: Path, truth: dict[str, TarSample], tmp_path: Path) -> None:
    """By number, through its own index of shards."""
    wids = pytest.importorskip("wids")
    dataset = wids.ShardListDataset(str(shards / "shardindex.json"), cache_dir=str(tmp_path), transformations=[])
    assert len(dataset) == NUM
    found = {dataset[n]["__key__"]: dataset[n][".jpg"].read() for n in range(NUM)}
    assert found == {key: sample.members["jpg"] for key, sample in truth.items()}


def test_hugging_face_datasets(shards: Path, truth: dict[str, TarSample], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = {"train": [str(path) for path in sorted(shards.glob("*.tar"))]}
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path), streaming=True)
    found = {row["__key__"]: (row["txt"], row["json"]["key"], row["jpg"].size) for row in rows}
    assert found == {key: (s.members["txt"].decode(), key, (16, 16)) for key, s in truth.items()}


def test_energon(shards: Path, truth: dict[str, TarSample]) -> None:
    """As it is: prepared by us, no `energon prepare`."""
    energon = pytest.importorskip("megatron.energon")
    config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = energon.get_train_dataset(
        str(shards), worker_config=config, batch_size=1, shuffle_buffer_size=None, max_samples_per_sequence=None,
        repeat=False,
    )  # fmt: skip
    found = {batch.__key__[0].rpartition("/")[2]: batch.caption[0] for batch in energon.get_loader(dataset)}
    assert found == {key: sample.members["txt"].decode() for key, sample in truth.items()}


def test_dali(shards: Path, truth: dict[str, TarSample]) -> None:
    """DALI itself needs a GPU's software; its index is read as its documentation says."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(shards.glob("*.tar")):
        head, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert head == f"v1.2 {len(lines)}"
        tar = path.read_bytes()
        for line in lines:
            words = line.split(" ")
            for extension, offset, size, name in zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True):
                key = name.removesuffix(f".{extension}")
                found.setdefault(key, {})[extension] = tar[int(offset) : int(offset) + int(size)]
    assert found == {key: sample.members for key, sample in truth.items()}


def test_open_clip(shards: Path) -> None:
    """Its own counting of a folder of shards."""
    declare_missing_operators()
    from open_clip_train import data

    assert data.get_dataset_size(f"{shards}/{{00000..00002}}.tar") == (NUM, 3)


def test_img2dataset_layout(shards: Path) -> None:
    """Names and fields as its own shards have them (the tables are compared in test_shard)."""
    stats = json.loads((shards / "00000_stats.json").read_text())
    assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"] == 5


def test_foreign_tars_get_the_same_files(shards: Path, tmp_path: Path) -> None:
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index_dataset(str(tmp_path), num_workers=1)
    for name in ("00000.idx", "00001.tar.idx", "sizes.json", "shardindex.json", ".nv-meta/dataset.yaml"):
        assert (tmp_path / name).read_bytes() == (shards / name).read_bytes(), name
