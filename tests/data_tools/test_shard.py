"""Shards keep the contract: same input, same bytes; a failure is a row, not a loss; a rerun writes what is missing."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from data_tools.shard import ShardConfig, WorkConfig, shuffled_order
from data_tools.shard import shard_dataset as shard_source
from data_tools.sources.open import open_source
from data_tools.table import sample_digest
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import load_manifest, read_index
from pipeline.data.tar import parse_samples, sample_offsets

NUM_GOOD, NUM_BAD = 23, 2
CONFIG = ShardConfig(size=16, samples_per_shard=10)


def shard_dataset(url: str, out: str, config: ShardConfig, num_workers: int) -> dict:
    """Whatever lies at `url`, by workers on this machine."""
    return shard_source(open_source(url), url, out, config, WorkConfig(num_workers=num_workers))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 good pictures of 16 px and two bad ones; all with captions but one."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for n in range(NUM_GOOD):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
        if n:
            (folder / f"{n:02d}.txt").write_text(f"picture {n} é")
    (folder / "page.png").write_text("<html>")
    (folder / "cut.png").write_bytes((folder / "05.png").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("shards"))
    shard_dataset(str(pictures), out, CONFIG, num_workers=1)
    return out


def tree(folder: str | Path) -> dict[str, bytes]:
    """Every file but the stats, whose times differ."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if not p.name.endswith("_stats.json")}


def test_the_folder_holds_the_contract(shards: str) -> None:
    wanted = {f"{n:05d}{end}" for n in range(3) for end in (".tar", ".tar.idx", ".idx", ".parquet", "_stats.json")}
    assert set(storage.list_names(shards)) == wanted | {"manifest.json", "sizes.json", "shardindex.json", ".nv-meta"}
    manifest = load_manifest(shards)
    assert manifest.kind == "images" and manifest.num_samples == NUM_GOOD and len(manifest.fingerprint) == 64
    for record in manifest.shards:
        data = Path(shards, record.name).read_bytes()
        assert (record.num_bytes, record.sha256) == (len(data), storage.sha256_of(Path(shards, record.name)))
        assert np.array_equal(read_index(f"{shards}/{record.name}.idx"), sample_offsets(data))


def test_every_input_is_a_row_and_every_success_a_sample(shards: str, pictures: Path) -> None:
    rows, samples = [], []
    for n in range(3):
        rows += parquet.read_table(f"{shards}/{n:05d}.parquet").to_pylist()
        samples += parse_samples(Path(f"{shards}/{n:05d}.tar").read_bytes())
    good = [row for row in rows if row["status"] == "success"]
    assert len(rows) == NUM_GOOD + NUM_BAD and {row["url"] for row in rows} == {p.name for p in pictures.glob("*.*g")}
    assert [row["key"] for row in good] == [sample.key for sample in samples]
    assert [row["key"] for row in rows] == [f"{n // 10:05d}{n % 10}" for n in range(NUM_GOOD + NUM_BAD)]
    for row, sample in zip(good, samples, strict=True):
        assert list(sample.members) == ["json", "png", "txt"]
        assert sample.members["png"] == (pictures / row["url"]).read_bytes(), "nothing to change: bytes as they came"
        assert sample.members["txt"].decode() == row["caption"] and json.loads(sample.members["json"]) == {
            name: value for name, value in row.items() if name != "sample_sha256"
        }
        assert row["sample_sha256"] == sample_digest(sample.members)
    bad = {row["url"]: row["error_message"] for row in rows if row["status"] == "failed_to_resize"}
    assert bad == {"page.png": "not a picture of a known format", "cut.png": "image file is truncated"}


def test_columns_stand_as_in_img2dataset(shards: str) -> None:
    names = parquet.read_schema(f"{shards}/00000.parquet").names
    assert names == ["caption", "url", "key", "status", "error_message", "width", "height", "original_width",
                     "original_height", "sha256", "sample_sha256"]  # fmt: skip
    stats = storage.read_json(f"{shards}/00000_stats.json")
    assert {"count", "successes", "failed_to_download", "failed_to_resize", "duration", "start_time", "end_time",
            "status_dict"} <= set(stats)  # fmt: skip


def test_any_number_of_workers_writes_the_same_bytes(shards: str, pictures: Path, tmp_path: Path) -> None:
    shard_dataset(str(pictures), str(tmp_path), CONFIG, num_workers=3)
    assert tree(tmp_path) == tree(shards)


def test_a_moved_input_gives_the_same_bytes(shards: str, pictures: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(pictures)
    shard_dataset(str(moved), str(tmp_path / "out"), CONFIG, num_workers=1)
    assert tree(tmp_path / "out") == tree(shards)


def test_a_rerun_writes_only_what_is_missing(pictures: Path, tmp_path: Path) -> None:
    out = str(tmp_path)
    first = shard_dataset(str(pictures), out, CONFIG, num_workers=1)
    before = tree(out)
    (tmp_path / "00001_stats.json").unlink()  # as a kill leaves it: no stats, the shard does not count
    (tmp_path / "00001.tar").write_bytes(b"torn")
    (tmp_path / "manifest.json").unlink()
    again = shard_dataset(str(pictures), out, CONFIG, num_workers=1)
    assert again["written_now"] == 1 and tree(out) == before
    assert again | {"written_now": 3} == first


def test_kill_9_in_the_middle_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    """A killed run and its rerun leave what an undisturbed run leaves."""
    for n in range(400):  # more to do
        (tmp_path / "in" / str(n)).mkdir(parents=True)
        (tmp_path / "in" / str(n) / "x.png").write_bytes((pictures / f"{n % NUM_GOOD:02d}.png").read_bytes())
    config = ShardConfig(resize="none", samples_per_shard=5)
    out = tmp_path / "out"
    command = ["shard", str(tmp_path / "in"), "--out", str(out), "--samples-per-shard", "5", "--num-workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "data_tools", *command])
    deadline = time.monotonic() + 60
    while not list(out.glob("*_stats.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (out / "manifest.json").exists(), "killed too late to prove anything"
    written = len(list(out.glob("*_stats.json")))
    again = shard_dataset(str(tmp_path / "in"), str(out), config, num_workers=1)
    assert 0 < again["written_now"] == 80 - written
    shard_dataset(str(tmp_path / "in"), str(tmp_path / "calm"), config, num_workers=1)
    assert tree(out) == tree(tmp_path / "calm"), "nothing half-written stays behind either"


def test_another_config_or_input_is_refused_by_name(shards: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.size: 16 -> 8"):
        shard_dataset(str(pictures), shards, CONFIG.model_copy(update={"size": 8}), num_workers=1)
    (tmp_path / "x.png").write_bytes((pictures / "00.png").read_bytes())
    with pytest.raises(UserError, match="input.pairs: 25 -> 1"):
        shard_dataset(str(tmp_path), shards, CONFIG, num_workers=1)


def test_shards_of_foreign_origin_are_not_overwritten(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "laion.tar").write_bytes(bytes(1024))
    with pytest.raises(UserError, match="laion.tar"):
        shard_dataset(str(pictures), str(tmp_path), CONFIG, num_workers=1)


def test_nothing_to_read_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures here"):
        shard_dataset(str(tmp_path), str(tmp_path / "out"), CONFIG, num_workers=1)
    (tmp_path / "x.png").write_text("<html>")
    with pytest.raises(UserError, match="not one of 1 pictures could be read: not a picture"):
        shard_dataset(str(tmp_path), str(tmp_path / "out"), CONFIG, num_workers=1)


def test_a_table_keeps_its_further_columns_typed(pictures: Path, tmp_path: Path) -> None:
    facts = [{"score": n / 2, "width": 3, "tags": ["a"]} for n in range(3)]
    rows = [{"path": f"{pictures}/{n:02d}.png", "caption": f"{n}"} | facts[n] for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"path": "gone.png", "caption": ""}')
    summary = shard_dataset(str(tmp_path / "t.jsonl"), str(tmp_path / "out"), CONFIG, num_workers=1)
    assert summary["failures"] == {"no such file": 1}
    found = parquet.read_table(tmp_path / "out" / "00000.parquet")
    types = {name: str(found.schema.field(name).type) for name in ("score", "input_width", "tags")}
    assert types == {"score": "double", "input_width": "int64", "tags": "string"}
    assert {row["caption"]: row["score"] for row in found.to_pylist()} == {"0": 0.0, "1": 0.5, "2": 1.0, "": None}


def test_shards_on_an_fsspec_url(shards: str, pictures: Path) -> None:
    shard_dataset(str(pictures), "memory://shards", CONFIG, num_workers=1)
    assert {name: storage.read_bytes(f"memory://shards/{name}") for name in tree(shards)} == tree(shards)


def test_webdataset_reads_the_shards(shards: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(f"{shards}/{{00000..00002}}.tar", shardshuffle=False))
    assert len(found) == NUM_GOOD and {"__key__", "png", "txt", "json"} <= set(found[0])
    assert Image.open(io.BytesIO(found[0]["png"])).size == (16, 16)


def test_the_order_is_a_fixed_permutation() -> None:
    assert sorted(shuffled_order(1000, 3).tolist()) == list(range(1000))
    assert shuffled_order(8, 0).tolist() == [6, 4, 3, 7, 2, 1, 5, 0], "other machines and versions must agree"
    assert shuffled_order(50, 0).tolist() != shuffled_order(50, 1).tolist()


def test_commands_side_by_side_share_the_shards(shards: str, pictures: Path, tmp_path: Path) -> None:
    """Three commands of a job array in any order leave what one leaves; the last to end writes the manifest."""
    source = open_source(str(pictures))
    for index in (2, 0, 1):
        assert not (tmp_path / "manifest.json").exists()
        summary = shard_source(source, "pictures", str(tmp_path), CONFIG, WorkConfig(share=(index, 3)))
        assert summary["written_now"] == 1
    assert summary["missing"] == 0 and tree(tmp_path) == tree(shards)


def test_a_full_disk_is_told_and_leaves_no_half_shard(pictures: Path, tmp_path: Path) -> None:
    """A disk of 256 KB as a file system of its own, or where the kernel allows none, files of at most 100 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = f"shard {tmp_path / 'in'} --out {disk} --samples-per-shard 4 --num-workers 1"
    program = f"{sys.executable} -m data_tools {words}; code=$?; cp -r {disk}/. {tmp_path / 'left'}; exit $code"
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / f"in/{n:02d}.png")
    script = f"mount -t tmpfs -o size=256k tmpfs {disk} || exit 77; {program}"
    unshare = ["unshare", "--mount", "--map-root-user", "bash", "-c", script]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare:" in done.stderr:
        limited = ["bash", "-c", f"ulimit -f 100; {program}"]
        done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot be written" in done.stderr and ("No space left" in done.stderr or "too large" in done.stderr)
    left = tmp_path / "left"
    whole = {path.name.removesuffix("_stats.json") for path in left.glob("*_stats.json")}
    assert whole < {"00000", "00001", "00002"} and not (left / "manifest.json").exists()
    assert not list(left.glob(".*.partial")), "the room that half a shard took is free again"
    config = ShardConfig(resize="none", samples_per_shard=4)
    again = shard_dataset(str(tmp_path / "in"), str(left), config, num_workers=1)
    assert again["written_now"] == 3 - len(whole)
    shard_dataset(str(tmp_path / "in"), str(tmp_path / "calm"), config, num_workers=1)
    assert tree(left) == tree(tmp_path / "calm")
