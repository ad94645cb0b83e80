"""Parquet with the pictures inside, as the Hub has it: found, named, mixed by row groups, read forward."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_tools.pair_list import PairList
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources import cells
from data_tools.sources.open import open_source
from data_tools.sources.pair import Cell
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.tar import parse_samples
from tests.data_tools.test_inputs import found, picture
from tests.data_tools.test_shard import tree

NUM, GROUP = 20, 4


def write(path: Path, plain: bool = False, first: int = 0) -> None:
    """Twenty pictures in groups of four: as `datasets` writes them, or as plain bytes with no path."""
    numbers = range(first, first + NUM)
    images = [picture(n) if plain else {"bytes": picture(n), "path": f"{n}.png"} for n in numbers]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "jpg" if plain else "image": pa.array(images, kind),
        "thumbnail": pa.array([b"small"] * NUM),
        "caption": pa.array([[f"caption {n}", "another"] for n in numbers]),
        "score": pa.array([n / 2 for n in numbers]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=GROUP)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("root", ["{tmp}", "memory://parquet"])
def test_pictures_inside(tmp_path: Path, plain: bool, root: str) -> None:
    write(tmp_path / "t.parquet", plain)
    url = root.format(tmp=tmp_path) + "/t.parquet"
    storage.write_bytes(url, (tmp_path / "t.parquet").read_bytes())
    source = open_source(url)
    pairs, contents = list(source.pairs()), found(source)
    assert [pair.name for pair in pairs] == [f"t.parquet/{n}.png" if plain else f"{n}.png" for n in range(NUM)]
    assert [(c.picture, c.caption) for c in contents] == [(picture(n), f"caption {n}") for n in range(NUM)]
    assert contents[3].extra == {"caption": ["caption 3", "another"], "score": 1.5}, "all captions, no other bytes"


def test_what_datasets_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "text": datasets.Value("string")})
    rows = {"photo": [{"bytes": picture(n), "path": None} for n in range(5)], "text": [f"c{n}" for n in range(5)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "t.parquet"))
    assert [c.picture for c in found(open_source(str(tmp_path / "t.parquet")))] == [picture(n) for n in range(5)]


def test_groups_are_mixed_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole groups come in a fixed, mixed order, so that each is read from front to back; workers change nothing."""
    for n in range(2):
        write(tmp_path / f"in/{n}.parquet", first=NUM * n)
    config = ShardConfig(resize="none", samples_per_shard=8)
    reads = []
    batches = cells._Group._batches
    monkeypatch.setattr(cells._Group, "_batches", lambda group: (reads.append(group), batches(group))[1])
    url = str(tmp_path / "in")
    cells.close_files()
    summary = shard_dataset(open_source(url), url, str(tmp_path / "one"), config, WorkConfig())
    assert (summary["samples"], summary["shards"]) == (2 * NUM, 5)
    assert len(reads) == 2 * NUM // GROUP + 2, "each group once, and the first picture of each file for its kind"
    samples = [s for path in sorted((tmp_path / "one").glob("*.tar")) for s in parse_samples(path.read_bytes())]
    numbers = [int(sample.members["txt"].split()[1]) for sample in samples]
    groups = [numbers[n : n + GROUP] for n in range(0, 2 * NUM, GROUP)]
    assert all(group == list(range(group[0], group[0] + GROUP)) for group in groups)
    assert [group[0] for group in groups] != sorted(group[0] for group in groups) and sorted(numbers) == list(range(40))
    assert all(s.members["png"] == picture(n) for s, n in zip(samples, numbers, strict=True))
    shard_dataset(open_source(url), url, str(tmp_path / "two"), config, WorkConfig(num_workers=2))
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    with PairList(open_source(url)) as pairs:
        assert pairs.group_starts.tolist() == list(range(0, 2 * NUM, GROUP))


def test_an_empty_cell_is_a_failure_of_its_row(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([picture(0), None]), "caption": ["a", "b"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    source = open_source(str(tmp_path / "t.parquet"))
    summary = shard_dataset(source, "t", str(tmp_path / "out"), ShardConfig(resize="none"), WorkConfig())
    assert summary["samples"] == 1 and summary["failures"] == {"no picture in this row": 1}


def test_any_cell_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    for group, row in ((1, 3), (1, 0), (0, 2), (4, 1), (1, 3)):
        assert cells.read_cell(str(tmp_path / "t.parquet"), Cell("image.bytes", group, row)) == picture(4 * group + row)


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    """Tables below the top, one split at a time, or those of a pattern."""
    for split in ("train", "test"):
        for n in range(2):
            write(tmp_path / f"repo/data/{split}-{n:05d}-of-00002.parquet")
    (tmp_path / "repo/README.md").write_text("# A dataset")
    with pytest.raises(UserError, match=r"holds the splits data/test, data/train; give one, as '.*repo/data/test-\*'"):
        open_source(str(tmp_path / "repo"))
    assert len(list(open_source(f"{tmp_path}/repo/data/train-*").pairs())) == 2 * NUM
    for path in (tmp_path / "repo/data").glob("test-*"):
        path.unlink()
    assert len(list(open_source(str(tmp_path / "repo")).pairs())) == 2 * NUM


def test_wrong_columns_are_told(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet")
    url = str(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"no column captoin; did you mean caption\?"):
        list(open_source(url, None, "captoin").pairs())
    with pytest.raises(UserError, match=r"no column imag; did you mean image\?"):
        list(open_source(url, "imag").pairs())
    with pytest.raises(UserError, match="no such file"):
        open_source(f"{tmp_path}/none-*.parquet")
