"""The inputs of others: COCO, Hugging Face datasets, WebDataset tars, tables of LAION's kind, compressed ones."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from data_tools.fetch import fetch_stored
from data_tools.pair_list import PairList
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.sources.pair import Found, Source
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.tar import TarSample, write_samples


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, kind)
    return file.getvalue()


def found(source: Source) -> list[Found]:
    return [pair.read(fetch_stored) for pair in source.pairs()]


def coco(folder: Path, pictures: str) -> Path:
    """A captions file as COCO's archives hold it, in `annotations/` beside the pictures' folder."""
    (folder / pictures).mkdir(parents=True)
    (folder / "annotations").mkdir()
    for n in (7, 3):
        (folder / pictures / f"{n}.png").write_bytes(picture(n))
    tree = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in (7, 3)],
        "annotations": [{"id": n, "image_id": 3 + 4 * (n % 2), "caption": f" caption {n}\n"} for n in range(5, 0, -1)],
    }
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(tree))
    return folder / "annotations/captions_val2017.json"


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017", "annotations"])
def test_coco(tmp_path: Path, pictures: str) -> None:
    if pictures == "annotations":
        file = coco(tmp_path, "val2017")
        for path in (tmp_path / "val2017").iterdir():
            path.rename(tmp_path / "annotations" / path.name)
    else:
        file = coco(tmp_path, pictures)
    first, second = found(open_source(str(file)))
    assert (first.picture, first.caption) == (picture(3), "caption 2")
    assert second.extra == {"image_id": 7, "captions": ["caption 1", "caption 3", "caption 5"]}


def test_coco_without_its_pictures_or_of_another_kind_is_told(tmp_path: Path) -> None:
    file = coco(tmp_path, "elsewhere")
    with pytest.raises(UserError, match="3.png is not nearby"):
        found(open_source(str(file)))
    file.write_text('{"images": []}')
    with pytest.raises(UserError, match="not a COCO captions file: no 'annotations'"):
        found(open_source(str(file)))


def test_a_saved_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": picture(n), "path": f"{n}.png" if n % 2 else None} for n in range(7)],
        "text": [f"caption {n}" for n in range(7)],
        "score": [n / 2 for n in range(7)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "score": datasets.Value("float64")}
    )
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "splits"))
    pairs = found(open_source(str(tmp_path / "saved")))
    assert [(p.picture, p.caption, p.extra) for p in pairs] == [
        (picture(n), f"caption {n}", {"score": n / 2}) for n in range(7)
    ]
    names = [pair.name.rpartition(".")[2] for pair in open_source(str(tmp_path / "saved")).pairs()]
    assert names == ["png"] * 7, "named by content where the dataset has no name"
    with pytest.raises(UserError, match="holds the splits train; give one"):
        found(open_source(str(tmp_path / "splits")))
    fs = storage.filesystem("memory://hf")[0]
    fs.put(str(tmp_path / "saved"), "/hf", recursive=True)
    assert [p.picture for p in found(open_source("memory://hf"))] == [picture(n) for n in range(7)]


def tar_of(first: int, count: int) -> bytes:
    """As img2dataset leaves it: keys with gaps, metadata with scores."""
    samples = [
        TarSample(
            f"{n:09d}",
            {
                "jpg": picture(n, "JPEG"),
                "txt": f"caption {n}".encode(),
                "json": json.dumps({"url": f"http://x/{n}", "similarity": n / 4 if n else 1, "caption": "c"}).encode(),
            },
        )
        for n in range(first, first + 2 * count, 2)
    ]
    file = io.BytesIO()
    write_samples(file, samples)
    return file.getvalue()


@pytest.mark.parametrize("root", ["{tmp}", "memory://tars-in"])
def test_tars_of_others_keep_their_metadata(tmp_path: Path, root: str) -> None:
    root = root.format(tmp=tmp_path / "in")
    for n in range(2):
        storage.write_bytes(f"{root}/{n:05d}.tar", tar_of(10 * n, 3))
        storage.write_bytes(f"{root}/{n:05d}_stats.json", b"{}")
    summary = shard_dataset(open_source(root), root, str(tmp_path / "out"), ShardConfig(resize="none"), WorkConfig())
    assert (summary["samples"], summary["failed"]) == (6, 0)
    rows = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert {row["caption"]: row["similarity"] for row in rows} == {
        f"caption {n}": n / 4 if n else 1 for n in (0, 2, 4, 10, 12, 14)
    }
    assert {row["input_url"] for row in rows} == {f"http://x/{n}" for n in (0, 2, 4, 10, 12, 14)}
    assert len(found(open_source(f"{root}/00001.tar"))) == 3, "one tar alone"


def test_a_broken_tar_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(0, 3)[:-3000])
    with pytest.raises(UserError, match="x.tar: not a whole, uncompressed tar"):
        found(open_source(str(tmp_path)))


def test_tables_of_laions_kind(tmp_path: Path) -> None:
    """Many files, columns in capitals, gzipped or not; the order is that of names and rows."""
    for n in range(3):
        text = f"URL,TEXT\n{n}.png,caption {n}\n"
        (tmp_path / f"part-{n}.csv.gz").write_bytes(gzip.compress(text.encode()))
    pairs = list(open_source(str(tmp_path)).pairs())
    assert [(pair.name, pair.caption) for pair in pairs] == [(f"{n}.png", f"caption {n}") for n in range(3)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("where,title,path\na.png,one,ignored\n")
    (pair,) = open_source(str(tmp_path / "t.csv"), "where", "title").pairs()
    assert (pair.name, pair.caption, pair.extra) == ("a.png", "one", {"path": "ignored"})
    with pytest.raises(UserError, match=r"no column wher; did you mean where\?"):
        list(open_source(str(tmp_path / "t.csv"), "wher", "title").pairs())


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("t.csv.gz", b"not gzipped", "not a readable .csv file"),
        ("t.csv", b"path,caption\na.png,b,c\n", "row 0 has more fields"),
        ("t.jsonl", b'{"path": {"bytes": 1}, "caption": ""}', "holds no path or URL, but a dict"),
        ("t.json", b"[]", "not a COCO captions file: a list where an object is wanted"),
    ],
)
def test_other_wrong_tables(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=complaint):
        list(open_source(str(tmp_path / name)).pairs())


def test_an_unreadable_folder_is_no_gap(tmp_path: Path) -> None:
    """What cannot be listed must not be missing silently; root, who may read all, becomes nobody for this."""
    (tmp_path / "in/locked").mkdir(parents=True)
    (tmp_path / "in/a.png").write_bytes(picture(1))
    (tmp_path / "in/locked/b.png").write_bytes(picture(2))
    (tmp_path / "in/locked").chmod(0)
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from data_tools.sources.open import open_source\n"
        "from pipeline.config import UserError\n"
        "import pipeline.storage, fsspec.implementations.local\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: open_source(sys.argv[1])\n"
        "except UserError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if os.getuid() == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (tmp_path / "in/locked").chmod(0o755)
    assert "cannot be read whole" in done.stdout and "locked" in done.stdout, done.stderr


def test_memory_does_not_hold_the_pairs(tmp_path: Path) -> None:
    """Of a pair only 8 bytes stay; and any of them comes back as it was."""
    import tracemalloc

    (tmp_path / "t.csv").write_text(
        "path,caption,score\n" + "".join(f"{n}.png,{'word ' * 20}{n},0.5\n" for n in range(4_000))
    )
    tracemalloc.start()
    with PairList(open_source(str(tmp_path / "t.csv"))) as pairs:
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(pairs) == 4_000 and held < 4_000 * 24 + (1 << 18)
        numbers = np.random.default_rng(0).permutation(4_000)[:50].tolist()
        assert [pair.name for pair in pairs.take(numbers)] == [f"{n}.png" for n in numbers]
        assert pairs.extra_columns() == {"score": "string"} and pairs.all_lossless
