"""Every kind of input lists the same pairs, in an order of its own content, and says what is wrong with it."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_tools.fetch import fetch_stored
from data_tools.sources.open import open_source
from data_tools.sources.pair import Pair
from pipeline.config import UserError

ROWS = [
    {"path": "b.png", "caption": "ein Bär, braun", "score": "0.5"},
    {"path": "folder/a.jpg", "caption": 'said "go"\nand left', "score": "0.25"},
]


def pairs(path: Path) -> list[Pair]:
    return list(open_source(str(path)).pairs())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "z.png": None, "z.txt": "the last\n", "b/2.JPG": None, "b/2.json": '{"caption": "two", "x": 1}',
        "b/1.webp": None, "notes.txt": "no picture", ".hidden/h.png": None, ".h.png": None,
        "both.png": None, "both.txt": "text wins", "both.json": '{"caption": "not this"}',
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text or "pixels", encoding="utf-8")
    return tmp_path


def test_a_folder_tree_in_order_of_paths(folder: Path) -> None:
    found = {pair.name: pair.read_caption(fetch_stored) for pair in pairs(folder)}
    assert found == {"b/1.webp": "", "b/2.JPG": "two", "both.png": "text wins", "z.png": "the last"}
    assert list(found) == sorted(found)
    assert [pair.read(fetch_stored).picture for pair in pairs(folder)] == [b"pixels"] * 4


def write_table(path: Path) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, ROWS)) + "\n")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_say_the_same(tmp_path: Path, ending: str) -> None:
    write_table(tmp_path / f"table.{ending}")
    found = pairs(tmp_path / f"table.{ending}")
    assert [(pair.name, pair.caption, dict(pair.extra)) for pair in found] == [
        (row["path"], row["caption"], {"score": row["score"]}) for row in ROWS
    ]
    assert [pair.picture for pair in found] == [f"{tmp_path}/b.png", f"{tmp_path}/folder/a.jpg"]


def test_absolute_paths_and_urls_stay(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,text\n/abs/x.png,one\ns3://bucket/y.png,\n")
    assert [(p.picture, p.read_caption(fetch_stored)) for p in pairs(tmp_path / "t.csv")] == [
        ("/abs/x.png", "one"),
        ("s3://bucket/y.png", ""),
    ]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "t.csv",
            "where,caption\na.png,x\n",
            "no column named path, .* --picture-column and one of where, caption",
        ),
        ("t.csv", "imgae,caption\na.png,x\n", "no column named path, .* --picture-column imgae\\?"),
        ("t.csv", "path,title\na.png,x\n", "no column named caption, text"),
        ("t.csv", "path,caption\n,x\n", "row 0 has no path"),
        ("t.jsonl", '{"path": "a.png"\n', "not a readable .jsonl file"),
        ("t.parquet", "nonsense", "not a readable .parquet file"),
        ("t.zip", "nonsense", "not a folder and not one of .csv"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint) as told:
        pairs(tmp_path / name)
    assert "\n" not in str(told.value) and str(tmp_path / name) in str(told.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.csv"])
def test_a_missing_input_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such"):
        pairs(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "complaint"), [('{"title": "x"}', "no field caption"), ("[1]", "no field"), ("{", "Expecting")]
)
def test_a_json_without_caption_is_a_failure_of_its_pair(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.png").write_text("pixels")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        pairs(tmp_path)[0].read_caption(fetch_stored)
