"""What every test stands on: few threads, no network, no server of the user's, and skips that can be forbidden."""

import os
from collections.abc import Iterator

# Before the first import of torch: many small tests on many threads are slower than on two, and two ranks share a core.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
    del os.environ[name]

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.s3_server import S3Server, start  # noqa: E402

REQUIRE_ALL = os.environ.get("TESSERA_REQUIRE_ALL") == "1"
"""Set by .ci/run: a machine that has everything has no reason to skip."""

# A shared machine can stop for a second anywhere: no test judges time. CI draws the same examples every time.
settings.register_profile("tessera", deadline=None, derandomize=REQUIRE_ALL, print_blob=True)
settings.load_profile("tessera")


def _fail_a_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, and TESSERA_REQUIRE_ALL=1 forbids it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Turn the skip of a test into a failure where everything is required."""
    report = yield
    _fail_a_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a module that skips itself whole."""
    report = yield
    _fail_a_skip(report)
    return report


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests that want it: running, without buckets."""
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
