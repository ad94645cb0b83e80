"""The loader on real tars: exact, elastic, endless; it survives bad samples, and its threads always end (P1-P9)."""

import io
import json
import subprocess
import sys
import tarfile
import textwrap
import threading
from itertools import islice

import numpy as np
import pytest

from pipeline.config import UserError
from pipeline.data.loader import DataConfig, Loader, OrderedReader, sequential
from pipeline.data.tar import TarSample
from tests.data.small_shards import numbers, samples, write_dataset, write_pictures

COUNTS = [13, 0, 30, 7]
TOTAL = sum(COUNTS)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_pictures(str(folder), COUNTS)
    return str(folder)


def config(url, **fields):
    return DataConfig(**{"train": url, "image_size": 8, "num_lanes": 12, "block_samples": 4} | fields)


def stream(url, num_batches, samples_seen=0, world_size=1, batch_size=4, seed=0, **fields):
    """Keys of the first global batches, put together from the ranks' slices."""
    parts = []
    for rank in range(world_size):
        with Loader(url, config(url, **fields), seed, rank, world_size, batch_size=batch_size) as loader:
            parts.append([batch.keys for batch in islice(loader.batches(samples_seen), num_batches)])
    return [key for rows in zip(*parts, strict=True) for group in zip(*rows, strict=True) for key in group]


def test_an_epoch_is_every_sample_once_and_the_next_another_order(url):
    keys = stream(url, num_batches=25)
    assert len(keys) == 2 * TOTAL
    first, second = keys[:TOTAL], keys[TOTAL:]
    assert sorted(first) == sorted(second) == [f"{n:05d}" for n in range(TOTAL)]
    assert first != second


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_global_batches_are_the_same_for_every_world_size(url, world_size):
    assert stream(url, 10, world_size=world_size, batch_size=12) == stream(url, 10, batch_size=12)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 7)])
def test_threads_do_not_change_the_stream(url, threads, prefetch):
    fields = {"num_decode_threads": threads, "num_fetch_threads": threads, "prefetch_batches": prefetch}
    assert stream(url, 20, **fields, fetch_ahead_batches=prefetch) == stream(url, 20)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 6), (2, 4), (3, 30)])
def test_resume_anywhere_with_other_ranks_continues_the_stream(url, world_size, batch_size):
    whole = stream(url, 60, batch_size=4)
    for seen in (8, 48, 96):
        rest = stream(url, 2, samples_seen=seen, world_size=world_size, batch_size=batch_size)
        assert rest == whole[seen : seen + 2 * batch_size]


def test_pixels_captions_and_ids_belong_together(url):
    with Loader(url, config(url), seed=3, batch_size=10) as loader:
        for batch in islice(loader.batches(45), 3):
            assert numbers(batch) == batch.sample_ids == [int(k) for k in batch.keys]
            assert batch.captions == [f"caption {n}" for n in batch.sample_ids]
            assert (batch.images.shape, batch.images.is_contiguous()) == ((10, 3, 8, 8), True)
            assert batch.fetch_seconds >= 0


def test_a_batch_may_straddle_epochs(url):
    with Loader(url, config(url), seed=0, batch_size=20) as loader:
        batch = next(loader.batches(40))
        assert batch.epochs == [0] * 10 + [1] * 10


def test_a_batch_may_be_larger_than_the_dataset(url):
    assert sorted(stream(url, 1, batch_size=3 * TOTAL)) == sorted(3 * [f"{n:05d}" for n in range(TOTAL)])


def test_crops_and_flips_follow_the_sample_and_the_epoch(tmp_path):
    url = str(tmp_path)
    write_pictures(url, [12], size=(20, 11))
    fields = {"random_flip": True, "image_size": 8}
    seen = {}
    for world_size in (1, 2):
        for rank in range(world_size):
            with Loader(url, config(url, **fields), 1, rank, world_size, batch_size=4) as loader:
                for batch in islice(loader.batches(), 6):
                    for epoch, sample, image in zip(batch.epochs, batch.sample_ids, batch.images, strict=True):
                        assert np.array_equal(seen.setdefault((epoch, sample), image), image)
    assert len(seen) == 24
    assert any(not np.array_equal(seen[0, n], seen[1, n]) for n in range(12))


def test_ranks_that_do_not_divide_the_batch_are_refused(url):
    with pytest.raises(UserError, match="batch_size 10 does not divide by 4 ranks; take 8 or 12"):
        Loader(url, config(url), 0, 0, 4, batch_size=10)


def test_empty_and_missing_datasets_are_refused(tmp_path):
    with pytest.raises(UserError, match="tessera-data shard"):
        Loader(str(tmp_path / "none"), config("x"), 0, batch_size=1)
    write_dataset(str(tmp_path), [])
    with pytest.raises(UserError, match="without samples"):
        Loader(str(tmp_path), config("x"), 0, batch_size=1)


def test_sequential_is_each_sample_once_in_order(url):
    keys = [key for batch in sequential(url, config(url), batch_size=7) for key in batch.keys]
    assert keys == [f"{n:05d}" for n in range(TOTAL)]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_sequential_ranks_share_the_samples_and_make_equal_steps(url, world_size):
    ranks = [list(sequential(url, config(url), rank, world_size, batch_size=7)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {8}
    assert sorted(k for batches in ranks for b in batches for k in b.keys) == [f"{n:05d}" for n in range(TOTAL)]
    assert all(b.images.shape == (len(b.keys), 3, 8, 8) for batches in ranks for b in batches)
    assert min(len(b.keys) for batches in ranks for b in batches) > 0


def test_ordered_reader_reads_ranges(url):
    with OrderedReader(url, config(url), batch_size=5) as reader:
        assert [i for b in reader.batches(11, 33) for i in b.sample_ids] == list(range(11, 33))
        assert [i for b in reader.batches(0, 3) for i in b.sample_ids] == [0, 1, 2]


def spoil(content, number):
    """The same samples with one broken picture."""
    bad = TarSample(content[number].key, content[number].members | {"png": b"\x89PNG not a picture"})
    return [*content[:number], bad, *content[number + 1 :]]


def test_a_bad_sample_changes_only_its_own_slot(tmp_path):
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    write_dataset(good, [samples(40)])
    write_dataset(bad, [spoil(samples(40), 17)])
    served = {}
    for world_size in (1, 2):
        rows = [[], []]
        for rank in range(world_size):
            path = tmp_path / f"quarantine-{world_size}-{rank}.jsonl"
            fields = config(bad, max_bad_fraction=0.1)
            with Loader(bad, fields, 0, rank, world_size, batch_size=4, quarantine=path) as loader:
                rows[rank] = [b.sample_ids for b in islice(loader.batches(), 20)]
                assert loader.quarantined == path.exists()
                if path.exists():
                    record = json.loads(path.read_text())
                    assert (record["sample_id"], record["shard"], record["place"]) == (17, "00000.tar", 17)
        groups = zip(*rows[:world_size], strict=True)
        served[world_size] = [i for group in groups for ids in zip(*group, strict=True) for i in ids]
    assert served[1] == served[2]
    clean = [int(key) for key in stream(good, 20)]
    differing = [(a, b) for a, b in zip(clean, served[1], strict=True) if a != b]
    assert len(differing) == 2 and {a for a, _ in differing} == {17}


def test_too_many_bad_samples_stop_the_run(tmp_path):
    write_dataset(str(tmp_path), [spoil(spoil(samples(20), 3), 9)])
    loader = Loader(str(tmp_path), config("x", max_bad_fraction=0.05), 0, batch_size=20)
    with loader, pytest.raises(UserError, match="2 unreadable samples.*max_bad_fraction"):
        next(loader.batches())


def test_a_damaged_block_is_replaced_and_sequential_leaves_it_out(tmp_path):
    url = str(tmp_path)
    write_dataset(url, [samples(40)])
    tar = tmp_path / "00000.tar"
    with tarfile.open(tar) as file:
        offset = file.getmember("00009.png").offset
    data = bytearray(tar.read_bytes())
    data[offset : offset + 512] = b"?" * 512
    tar.write_bytes(bytes(data))
    block = {8, 9, 10, 11}
    with Loader(url, config(url, max_bad_fraction=0.2), 0, batch_size=40) as loader:
        assert not block & set(next(loader.batches()).sample_ids)
    ids = [i for b in sequential(url, config(url, max_bad_fraction=0.2), batch_size=7) for i in b.sample_ids]
    assert ids == [n for n in range(40) if n not in block]


def test_a_missing_or_short_shard_stops_with_its_name(tmp_path):
    url = str(tmp_path)
    write_dataset(url, [samples(10), samples(10, 10)])
    (tmp_path / "00001.tar").write_bytes((tmp_path / "00001.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"00001.tar: ends before"):
        list(sequential(url, config(url), batch_size=4))
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"00001.tar: not found"):
        list(sequential(url, config(url), batch_size=4))


def test_an_index_that_does_not_fit_is_named(tmp_path):
    url = str(tmp_path)
    manifest = write_dataset(url, [samples(10)])
    (tmp_path / "00000.tar.idx").write_bytes(b"\0" * 16)
    with pytest.raises(UserError, match=r"1 samples, the manifest 10; .*tessera-data index"):
        list(sequential(url, config(url), batch_size=4))
    assert manifest.num_samples == 10


def test_foreign_tars_with_other_headers_and_members(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples(6):
            for extension, data in {"jpg": sample.members["png"], "json": b'{"caption": "from json"}'}.items():
                info = tarfile.TarInfo(f"d/{sample.key}.{extension}")
                info.size, info.mtime = len(data), 1.5
                tar.addfile(info, io.BytesIO(data))
    from pipeline.data.shards import Manifest, ShardRecord, write_index
    from pipeline.data.tar import sample_offsets

    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    write_index(str(tmp_path / "a.tar.idx"), sample_offsets(buffer.getvalue()))
    Manifest("images", (ShardRecord("a.tar", 6, len(buffer.getvalue()), ""),)).save(str(tmp_path))
    batches = list(sequential(str(tmp_path), config("x"), batch_size=4))
    assert [k for b in batches for k in b.keys] == [f"d/{n:05d}" for n in range(6)]
    assert {c for b in batches for c in b.captions} == {"from json"}


def test_object_stores_give_the_same_stream(url):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(url, "/bucket/shards", recursive=True)
    assert stream("memory://bucket/shards", 5) == stream(url, 5)


def test_a_failing_store_is_tried_again(url, monkeypatch):
    import fsspec

    from pipeline import retry

    memory = fsspec.filesystem("memory")
    memory.put(url, "/bucket/shards", recursive=True)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.0)
    whole, calls = type(memory).cat_file, []

    def flaky(self, path, start=None, end=None, **options):
        if path.endswith((".tar", ".idx")):
            calls.append(path)
            if len(calls) % 3 == 1:
                raise OSError("503 slow down")
            if len(calls) % 3 == 2 and path.endswith(".tar"):
                return whole(self, path, start, end, **options)[:-1]
        return whole(self, path, start, end, **options)

    monkeypatch.setattr(type(memory), "cat_file", flaky)
    assert stream("memory://bucket/shards", 5, num_fetch_threads=1) == stream(url, 5)
    monkeypatch.setattr(type(memory), "cat_file", lambda *a, **k: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        stream("memory://bucket/shards", 1)


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith(("fetch", "decode", "read-ahead"))]


def test_threads_end_with_close_and_with_the_consumer(url):
    loader = Loader(url, config(url), 0, batch_size=4)
    batches = loader.batches()
    next(batches)
    assert threads()
    loader.close()
    assert threads() == []
    with pytest.raises(StopIteration):
        for _ in range(100):
            next(batches)
    one_pass = sequential(url, config(url), batch_size=4)
    next(one_pass)
    del one_pass
    assert threads() == []


def test_a_second_stream_ends_the_first(url):
    with Loader(url, config(url), 0, batch_size=4) as loader:
        first = next(loader.batches(0))
        again = next(loader.batches(0))
        assert first.keys == again.keys
        assert sum(name == "read-ahead" for name in threads()) == 1


@pytest.mark.parametrize("ending", ["pass", "raise KeyboardInterrupt", "raise SystemExit(0)"])
def test_the_interpreter_ends_at_once_with_an_open_stream(url, ending):
    program = f"""
        from pipeline.data.loader import DataConfig, Loader
        loader = Loader({url!r}, DataConfig(train="x", image_size=8), 0, batch_size=4)
        batches = loader.batches()
        next(batches)
        {ending}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert "Exception ignored" not in done.stderr and "Fatal" not in done.stderr
    assert done.returncode in ({130, -2} if "Keyboard" in ending else {0})
