"""One S3 server for all tests of this room that want it."""

from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, start


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Running, without buckets."""
    pytest.importorskip("swift")
    try:
        server = start(tmp_path_factory.mktemp("s3"))
    except OSError as error:
        pytest.skip(f"no extended attributes on the disk of the tests: {error}")
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, and the environment by which this process and its children find it."""
    import s3fs

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3_server
    s3fs.S3FileSystem.clear_instance_cache()
