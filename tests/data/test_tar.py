"""Tar bytes: every flavour of header gives the same samples, ours are canonical, damage is named with its offset."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tar import TarError, TarSample, parse_samples, sample_offsets, split_name, write_samples

KEYS = st.text("abcdefghij0123456789_-", min_size=1, max_size=20)
SAMPLES = [
    TarSample("00000", {"jpg": b"\xff\xd8" * 300, "json": b"{}", "txt": b"a red circle"}),
    TarSample("00001", {"jpg": b"", "json": b"{}", "txt": "grün".encode()}),
]


def tar_bytes(samples, format=tarfile.USTAR_FORMAT, mtime=0.0, prefix=""):
    """A tar written by the standard library: the foreign writer of these tests."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for sample in samples:
            for extension, data in sample.members.items():
                info = tarfile.TarInfo(f"{prefix}{sample.key}.{extension}")
                info.size, info.mtime = len(data), mtime
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("prefix", ["", "a" * 120 + "/", "ü/"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1.5])
def test_all_header_formats_give_the_same_samples(format, mtime, prefix):
    mtime = int(mtime) if format != tarfile.PAX_FORMAT else mtime
    samples = parse_samples(tar_bytes(SAMPLES, format, mtime, prefix))
    assert [s.key for s in samples] == [prefix + s.key for s in SAMPLES]
    assert [s.members for s in samples] == [s.members for s in SAMPLES]


@given(st.lists(st.tuples(KEYS, st.binary(max_size=1500)), max_size=8, unique_by=lambda pair: pair[0]))
def test_write_then_read_is_identity_and_tarfile_agrees(pairs):
    samples = [TarSample(key, {"bin": data, "txt": key.encode()}) for key, data in pairs]
    file = io.BytesIO()
    offsets = write_samples(file, samples)
    data = file.getvalue()
    assert parse_samples(data) == samples
    assert np.array_equal(sample_offsets(data), offsets)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [f"{s.key}.{e}" for s in samples for e in ("bin", "txt")]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_range_of_the_index_holds_exactly_its_samples(format):
    data = tar_bytes(SAMPLES * 1, format, mtime=1, prefix="b" * 110 + "/")
    offsets = [int(o) for o in sample_offsets(data)]
    parsed = parse_samples(data)
    assert [parse_samples(data[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)] == [[s] for s in parsed]


def test_writing_is_canonical():
    one, two = io.BytesIO(), io.BytesIO()
    write_samples(one, SAMPLES)
    write_samples(two, [TarSample(s.key, dict(reversed(s.members.items()))) for s in SAMPLES])
    assert one.getvalue() == two.getvalue()
    with tarfile.open(fileobj=io.BytesIO(one.getvalue())) as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {(0, 0, 0, 0o644, "")}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.seg.png", ("a/b", "seg.png")),
        ("a.b/c.JPG", ("a.b/c", "jpg")),
        ("nodot", None),
        ("__meta__/x.txt", None),
        ("__info__", None),
    ],
)
def test_grouping_rule(name, parts):
    assert split_name(name) == parts


def test_webdataset_groups_the_same_way():
    webdataset = pytest.importorskip("webdataset")
    data = tar_bytes(SAMPLES, prefix="x.y/")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = [{"fname": m.name, "data": tar.extractfile(m).read(), "__url__": "u"} for m in tar]
    theirs = list(webdataset.tariterators.group_by_keys(files))
    ours = parse_samples(data)
    assert [(s["__key__"], {k: v for k, v in s.items() if k[0] != "_"}) for s in theirs] == [
        (s.key, s.members) for s in ours
    ]


@pytest.mark.parametrize("key", ["a.b", ".hidden", "d/.x", "", "__meta__/a", "k" * 200])
def test_keys_that_readers_would_split_are_refused(key):
    with pytest.raises(ValueError):
        write_samples(io.BytesIO(), [TarSample(key, {"txt": b""})])


def test_damage_is_named():
    data = tar_bytes(SAMPLES)
    with pytest.raises(TarError, match="cut off"):
        parse_samples(data[:900])
    with pytest.raises(TarError, match="offset 0"):
        parse_samples(b"x" + data[1:])
    with pytest.raises(TarError, match="twice"):
        one = data[: int(sample_offsets(data)[1])]
        parse_samples(one + one)


def test_webdataset_reads_what_we_write(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with (tmp_path / "00000.tar").open("wb") as file:
        write_samples(file, SAMPLES)
    theirs = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)
    assert [(s["__key__"], s["jpg"], s["txt"]) for s in theirs] == [
        (s.key, s.members["jpg"], s.members["txt"]) for s in SAMPLES
    ]
