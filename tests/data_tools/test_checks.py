"""`validate` finds each kind of damage, `index` takes foreign tars and refuses what readers would mistake."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.commands.validate import problems_of
from data_tools.index import index_dataset
from data_tools.report import write_report
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.validate import validate_dataset
from pipeline.config import UserError
from pipeline.data.shards import load_manifest


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Two shards of three samples."""
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(png(n))
        (tmp_path / f"{n}.txt").write_text(f"word{n} <b>word</b>")
    config = ShardConfig(resize="none", samples_per_shard=3)
    shard_dataset(open_source(str(tmp_path)), "pictures", str(tmp_path / "out"), config, WorkConfig())
    return str(tmp_path / "out")


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))


def problems(url: str) -> list[str]:
    return problems_of(validate_dataset(url, num_workers=1))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_a_whole_dataset_has_no_problem(shards: str) -> None:
    checks = validate_dataset(shards, num_workers=1)
    assert [check.num_samples for check in checks] == [3, 3] and not problems(shards)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda out: (out / "00001.tar").unlink(), "00001.tar: the manifest names it, but it is not there"),
        (lambda out: (out / "00001.tar").write_bytes(b""), "00001.tar: 0 bytes"),
        (lambda out: flip(out / "00001.tar", 600), "sha256 differs"),
        (lambda out: flip(out / "00001.tar", 10), "broken after the start: offset 0: tar header with a wrong checksum"),
        (lambda out: flip(out / "00001.tar.idx", 8), "00001.tar.idx does not fit"),
        (lambda out: (out / "00001.tar.idx").unlink(), "00001.tar.idx is not there"),
        (lambda out: (out / "00001.parquet").write_bytes((out / "00000.parquet").read_bytes()), "lists other samples"),
        (
            lambda out: (out / "00001.tar").write_bytes((out / "00000.tar").read_bytes()),
            "000000: a key that came before",
        ),
    ],
)
def test_damage_is_found(shards: str, damage: Callable[[Path], object], complaint: str) -> None:
    damage(Path(shards))
    assert any(complaint in problem for problem in problems(shards)), problems(shards)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"a.png": png(0), "a.txt": b"\xff\xfe\xfa"}, "a: caption that is not UTF-8"),
        ({"a.png": png(0)[:60], "a.txt": b"cut"}, "a: not a whole PNG"),
        ({"a.png": png(0), "b.cls": b"1"}, "b: no picture among cls"),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, members: dict[str, bytes], complaint: str) -> None:
    write_tar(tmp_path / "x.tar", members)
    index_dataset(str(tmp_path), num_workers=1)
    assert problems(str(tmp_path)) == [f"x.tar: {complaint}"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_foreign_tars_are_indexed_once(tmp_path: Path, format: int) -> None:
    for shard in ("b", "a"):
        samples = {f"{shard}{n}.{end}": data for n in range(4) for end, data in (("jpg", png(n)), ("txt", b"caption"))}
        write_tar(tmp_path / f"{shard}.tar", samples, format)
    first = index_dataset(str(tmp_path), num_workers=1)
    assert (first["samples"], first["indexed_now"]) == (8, 2) and not problems(str(tmp_path))
    assert [record.name for record in load_manifest(str(tmp_path)).shards] == ["a.tar", "b.tar"]
    assert index_dataset(str(tmp_path), num_workers=1) == first | {"indexed_now": 0}


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"a.png": b"", "b.png": b"", "a.txt": b""}, "members of a are not neighbours"),
        ({"a.mp3": b"", "a.txt": b""}, "samples of mp3, txt hold no picture"),
        ({"README": b""}, "no samples inside"),
    ],
)
def test_foreign_tars_that_readers_would_mistake_are_refused(
    tmp_path: Path, members: dict[str, bytes], complaint: str
) -> None:
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=complaint):
        index_dataset(str(tmp_path), num_workers=1)


def test_a_folder_without_tars_and_a_compressed_tar_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no .tar here"):
        index_dataset(str(tmp_path), num_workers=1)
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 4)
    with pytest.raises(UserError, match="not a whole, uncompressed tar"):
        index_dataset(str(tmp_path), num_workers=1)


def test_the_report_is_one_page_with_everything(shards: str, tmp_path: Path) -> None:
    found = write_report(shards, str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert found.sizes == {(8, 8): 6} and found.words["word4"] == 1 and found.caption_lengths == {2: 6}
    assert page.count("data:image/png;base64,") == 6
    assert "&lt;b&gt;word&lt;/b&gt;" in page and "<b>word" not in page, "captions cannot inject markup"
    assert not any(outside in page for outside in ('src="http', "href=", "@import")), "no other file, no network"


def test_the_report_of_foreign_tars_counts_the_same(shards: str, tmp_path: Path) -> None:
    ours = write_report(shards, str(tmp_path / "ours.html"))
    for table in Path(shards).glob("*.parquet"):
        table.unlink()
    theirs = write_report(shards, str(tmp_path / "theirs.html"))
    assert (ours.sizes, ours.captions, ours.pictures) == (theirs.sizes, theirs.captions, theirs.pictures)


def test_there_is_no_report_about_latents(shards: str, tmp_path: Path) -> None:
    replace(load_manifest(shards), kind="latents").save(shards)
    with pytest.raises(UserError, match="holds latents"):
        write_report(shards, str(tmp_path / "report.html"))
