"""`validate --repair` writes again what is broken, nothing else, and keeps the bad."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet

from data_tools.commands.validate import problems_of
from data_tools.index import index_dataset
from data_tools.repair import repair_dataset
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.validate import validate_dataset
from pipeline.data.shards import load_manifest
from pipeline.data.tar import parse_samples, sample_offsets
from tests.data_tools.test_checks import flip, png, write_tar

CONFIG = ShardConfig(resize="none", samples_per_shard=4)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four samples, and their pictures."""
    (tmp_path / "in").mkdir()
    for n in range(12):
        (tmp_path / f"in/{n:02d}.png").write_bytes(png(n))
        (tmp_path / f"in/{n:02d}.txt").write_text(f"word{n}")
    make(tmp_path)
    return tmp_path / "out"


def make(folder: Path) -> None:
    shard_dataset(open_source(str(folder / "in")), "in", str(folder / "out"), CONFIG, WorkConfig())


def problems(folder: Path) -> list[str]:
    return problems_of(validate_dataset(str(folder), num_workers=1))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def body_of(tar: Path, place: int) -> int:
    """A byte inside the caption of a sample: nothing but a hash can tell that it is wrong."""
    offset = int(sample_offsets(tar.read_bytes())[place])
    return tar.read_bytes().index(b"word", offset)


def test_a_flipped_bit_is_named_and_its_sample_set_aside(shards: Path) -> None:
    before = files(shards)
    flip(shards / "00001.tar", body_of(shards / "00001.tar", 2))
    found = problems(shards)
    assert "00001.tar: 000012: other bytes than those that were written (sha256 differs)" in found
    assert all(line.startswith("00001.tar: ") for line in found)
    repair_dataset(str(shards), validate_dataset(str(shards), 1))
    assert problems(shards) == []
    assert [s.key for s in parse_samples((shards / "00001.tar").read_bytes())] == ["000010", "000011", "000013"]
    rows = {row["key"]: row for row in parquet.read_table(shards / "00001.parquet").to_pylist()}
    assert rows["000012"]["status"] == "failed_to_resize" and "quarantined" in rows["000012"]["error_message"]
    assert json.loads((shards / "00001_stats.json").read_text())["successes"] == 3
    assert load_manifest(str(shards)).num_samples == 11
    kept = parse_samples((shards / "quarantine/00001.tar").read_bytes())
    assert [sample.key for sample in kept] == ["000010", "000011", "000012", "000013"], "the whole tar, as it was found"
    others = {name: data for name, data in before.items() if name.startswith(("00000", "00002"))}
    assert {name: files(shards)[name] for name in others} == others, "what was right is not touched"


@pytest.mark.parametrize("name", ["00001.tar.idx", "00001.idx"])
def test_an_index_is_written_again_from_its_tar(shards: Path, name: str) -> None:
    before = files(shards)
    (shards / name).write_bytes(b"12345678" * 3)
    assert problems(shards)
    repair_dataset(str(shards), validate_dataset(str(shards), 1))
    assert problems(shards) == [] and files(shards) == before and not (shards / "quarantine").exists()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"PAR1"), lambda path: path.write_bytes(b"")])
def test_a_table_is_made_again_from_the_samples(shards: Path, damage: Callable[[Path], object]) -> None:
    before = parquet.read_table(shards / "00001.parquet")
    damage(shards / "00001.parquet")
    assert problems(shards)
    repair_dataset(str(shards), validate_dataset(str(shards), 1))
    assert problems(shards) == [] and parquet.read_table(shards / "00001.parquet").equals(before)


def test_of_a_tar_that_is_cut_off_the_whole_samples_stay(shards: Path) -> None:
    tar = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(tar[: int(sample_offsets(tar)[2]) + 700])
    assert any("broken after 000011" in line for line in problems(shards))
    repair_dataset(str(shards), validate_dataset(str(shards), 1))
    assert problems(shards) == [] and load_manifest(str(shards)).num_samples == 10
    rows = {row["key"]: row["error_message"] for row in parquet.read_table(shards / "00001.parquet").to_pylist()}
    assert rows["000013"] == "quarantined: lost behind a break of the tar"


def test_a_shard_that_is_gone_can_be_made_again(shards: Path) -> None:
    before = files(shards)
    (shards / "00001.tar").unlink()
    repair_dataset(str(shards), validate_dataset(str(shards), 1))
    assert problems(shards) == [] and load_manifest(str(shards)).num_samples == 8
    make(shards.parent)
    after = files(shards)
    assert {n: d for n, d in after.items() if not n.endswith("_stats.json")} == {
        n: d for n, d in before.items() if not n.endswith("_stats.json")
    }


def test_foreign_tars_lose_their_bad_samples(tmp_path: Path) -> None:
    members = {f"{n}.{end}": data for n in range(4) for end, data in (("png", png(n)), ("txt", b"x"))}
    write_tar(tmp_path / "x.tar", members | {"2.png": b"no picture", "1.txt": b"\xff"})
    write_tar(tmp_path / "y.tar", {"3.png": png(5), "3.txt": b"again", "5.png": png(6), "5.cls": b"1"})
    index_dataset(str(tmp_path), num_workers=1)
    assert problems(tmp_path) == [
        "x.tar: 1: caption that is not UTF-8",
        "x.tar: 2: not a whole picture: cannot identify image file",
        "y.tar: 5: members cls, png, the first sample has png, txt",
        "y.tar: 3: a key that came before; keys must be unique in a dataset",
    ] or problems(tmp_path)[1].startswith("x.tar: 2: not a whole picture")
    repair_dataset(str(tmp_path), validate_dataset(str(tmp_path), 1))
    assert problems(tmp_path) == []
    assert {p.name: [s.key for s in parse_samples(p.read_bytes())] for p in tmp_path.glob("*.tar")} == {
        "x.tar": ["0", "3"],
        "y.tar": [],
    }
