"""Tars without an index, read by webdataset: what comes out, what is passed over, and what is refused."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.dataset import DataConfig
from pipeline.data.stream import StreamLoader, stream_digest, tar_urls
from pipeline.data.tar import TarSample, write_samples
from tests.data.small_shards import samples
from tests.runs import ROOT, drawn_shards, losses, run

CAPTIONS = {f"caption {n}" for n in range(40)}


def tars(folder: Path, *, broken: int = 0) -> Path:
    """Two plain tars of 20 pictures each; the first `broken` of the second do not decode."""
    folder.mkdir()
    second = samples(20, first=20)
    second[:broken] = [TarSample(s.key, {**s.members, "png": b"no picture"}) for s in second[:broken]]
    for name, content in (("a.tar", samples(20)), ("b.tar", second)):
        with (folder / name).open("wb") as file:
            write_samples(file, content)
    return folder


def open_stream(folder: Path, rank: int = 0, quarantine: Path | None = None, **settings: float) -> StreamLoader:
    config = DataConfig(train=str(folder), order="stream", image_size=8, stream_shuffle_samples=10, **settings)
    return StreamLoader(str(folder), config, 3, rank, 2, batch_size=8, quarantine=quarantine)


def some(loader: StreamLoader, count: int, samples_seen: int = 0) -> list[Batch]:
    batches: Iterator[Batch] = loader.batches(samples_seen)
    return list(islice(batches, count))


def test_batches_of_everything_there_is(tmp_path: Path) -> None:
    folder, seen = tars(tmp_path / "s"), []
    for rank in (0, 1):
        loader = open_stream(folder, rank)
        batches = some(loader, 40, samples_seen=16)
        loader.close()
        assert [batch.sample_ids for batch in batches[:2]] == [
            [16 + rank + 2 * i + 8 * s for i in range(4)] for s in (0, 1)
        ]
        for batch in batches:
            assert batch.images is not None and batch.images.shape == (4, 3, 8, 8)
            numbers = [int(caption.split()[1]) for caption in batch.captions]
            assert [int(image[1, 0, 0]) for image in batch.images] == numbers  # the picture of that caption
        seen.append([caption for batch in batches for caption in batch.captions])
    assert set(seen[0]) == set(seen[1]) == CAPTIONS
    assert seen[0] != seen[1]


def test_the_draw_depends_on_seed_and_place_alone(tmp_path: Path) -> None:
    folder = tars(tmp_path / "s")
    captions = []
    for samples_seen in (0, 0, 64):
        loader = open_stream(folder)
        captions.append([batch.captions for batch in some(loader, 10, samples_seen)])
        loader.close()
    assert captions[0] == captions[1] != captions[2]


def test_the_unreadable_are_passed_over_and_written_down(tmp_path: Path) -> None:
    loader = open_stream(tars(tmp_path / "s", broken=2), quarantine=tmp_path / "bad.jsonl", max_bad_fraction=0.2)
    batches = some(loader, 30)
    loader.close()
    captions = {caption for batch in batches for caption in batch.captions}
    assert captions == CAPTIONS - {"caption 20", "caption 21"}
    assert all(len(batch.captions) == 4 for batch in batches)
    assert "b.tar" in (tmp_path / "bad.jsonl").read_text()


def test_too_many_unreadable_stop_the_run(tmp_path: Path) -> None:
    loader = open_stream(tars(tmp_path / "s", broken=20), max_bad_fraction=0.001)
    with pytest.raises(UserError, match="samples are unreadable, the last in .*b.tar"):
        some(loader, 100)
    loader.close()


def test_names_of_tars(tmp_path: Path) -> None:
    folder = tars(tmp_path / "s")
    both = [str(folder / "a.tar"), str(folder / "b.tar")]
    assert tar_urls(str(folder)) == tar_urls(f"{folder}/{{a,b}}.tar") == both
    assert stream_digest(str(folder)) != stream_digest(both[0])
    for wrong in (tmp_path, tmp_path / "none.tar"):
        with pytest.raises(UserError, match="no such tars"):
            tar_urls(str(wrong))


def test_only_what_has_a_manifest_is_asked_for_one() -> None:
    assert DataConfig(train="tars", validation="shards", order="stream").urls == ["shards"]
    assert DataConfig(train="tars", order="stream").urls == []
    assert DataConfig(train="tars", validation="shards").urls == ["tars", "shards"]


def test_buckets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.aspect_buckets: order: stream has no index"):
        open_stream(tars(tmp_path / "s"), aspect_buckets=True)


def test_a_run_trains_on_a_stream(tmp_path: Path) -> None:
    plain = tmp_path / "plain"  # the tars alone: what anybody's are
    plain.mkdir()
    drawn_shards(tmp_path, 8, "held-out")
    for path in drawn_shards(tmp_path, 40).glob("*.tar"):
        path.rename(plain / path.name)
    words = ["data.train=plain", "data.order=stream", "data.validation=held-out", "trainer.total_samples=96"]
    run(tmp_path, "pipeline", "train", str(ROOT / "configs/autoencoder/debug.yaml"), "run=r", *words)
    values = [value["l1_loss"] for value in losses(tmp_path / "r").values()]
    assert values and np.isfinite(values).all()
