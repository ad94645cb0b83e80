"""The shard contract: manifests survive a round trip, indexes are Energon's, and mistakes name their remedy."""

import numpy as np
import pytest

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import (
    Manifest,
    ShardRecord,
    index_name,
    load_manifest,
    read_index,
    shard_name,
    stats_name,
    table_name,
    write_index,
)

MANIFEST = Manifest("images", (ShardRecord("00000.tar", 3, 4096, "ab"), ShardRecord("00001.tar", 2, 2048, "cd")), "f00")


def test_names():
    name = shard_name(7)
    assert (name, index_name(name), table_name(name), stats_name(name)) == (
        "00007.tar",
        "00007.tar.idx",
        "00007.parquet",
        "00007_stats.json",
    )


def test_manifest_round_trip(tmp_path):
    MANIFEST.save(str(tmp_path))
    loaded = load_manifest(str(tmp_path))
    assert loaded == MANIFEST
    assert loaded.digest == MANIFEST.digest
    assert (loaded.num_samples, loaded.num_bytes) == (5, 6144)


def test_digest_depends_on_every_field():
    changed = Manifest("images", MANIFEST.shards[:1], "f00")
    stamped = Manifest("images", MANIFEST.shards, "f00", stamp={"a": 1})
    assert len({MANIFEST.digest, changed.digest, stamped.digest}) == 3


def test_missing_manifest_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"tessera-data index .*tessera-data shard"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"schema_version": 99}', b'{"schema_version": 1, "kind": "images"}'])
def test_broken_manifest_is_a_user_error(tmp_path, text):
    storage.write_bytes(str(tmp_path / "manifest.json"), text)
    with pytest.raises(UserError, match="index"):
        load_manifest(str(tmp_path))


def test_index_is_raw_little_endian_words(tmp_path):
    url = str(tmp_path / "00000.tar.idx")
    write_index(url, np.array([0, 1536, 4096]))
    assert (tmp_path / "00000.tar.idx").read_bytes() == b"".join(n.to_bytes(8, "little") for n in (0, 1536, 4096))
    assert read_index(url).tolist() == [0, 1536, 4096]


def test_missing_or_broken_index_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="tessera-data index"):
        read_index(str(tmp_path / "00000.tar.idx"))
    (tmp_path / "00001.tar.idx").write_bytes(b"123")
    with pytest.raises(UserError, match="3 bytes"):
        read_index(str(tmp_path / "00001.tar.idx"))
