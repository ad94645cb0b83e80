"""Writes are whole or absent, on local disks and on object stores."""

from pathlib import Path

import fsspec
import pytest

from pipeline import storage
from pipeline.config import UserError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value.bin"
    storage.write_bytes(target, b"old")
    with pytest.raises(RuntimeError), storage.writing(target) as file:
        file.write(b"half of the n")
        raise RuntimeError("killed here")
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["value.bin"]


def test_a_failed_write_to_an_object_store_leaves_no_object() -> None:
    url = "memory://bucket/value.bin"
    with pytest.raises(RuntimeError), storage.writing(url) as file:
        file.write(b"half")
        raise RuntimeError("killed here")
    assert not storage.exists(url)
    storage.write_bytes(url, b"whole")
    assert storage.read_bytes(url) == b"whole"


@pytest.mark.parametrize("root", ["{tmp}", "file://{tmp}", "memory://box"])
def test_the_same_calls_serve_paths_and_urls(root: str, tmp_path: Path) -> None:
    root = root.format(tmp=tmp_path)
    storage.write_json(storage.join(root, "a.json"), {"b": [1, 2]})
    storage.write_bytes(storage.join(root, "b.bin"), b"xyz")
    assert storage.read_json(storage.join(root, "a.json")) == {"b": [1, 2]}
    assert storage.list_names(root) == ["a.json", "b.bin"]
    assert storage.list_names(storage.join(root, "absent")) == []
    assert storage.exists(storage.join(root, "b.bin")) and not storage.exists(storage.join(root, "c.bin"))


def test_an_unknown_protocol_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="carrier"):
        storage.exists("carrier-pigeon://nest/egg")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert storage.sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")  # FIPS 180-4, appendix B.1


class LockedStore(fsspec.AbstractFileSystem):
    """An object store whose client raises an error of its own, as one without credentials does."""

    protocol = "locked"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        raise LookupError("Unable to locate credentials")


def test_a_store_that_cannot_be_asked_is_named_with_the_remedy() -> None:
    fsspec.register_implementation("locked", LockedStore, clobber=True)
    with pytest.raises(UserError, match="locked://bucket/a: Unable to locate credentials; check credentials"):
        storage.read_bytes("locked://bucket/a")
