"""Each check of the preflight, once where all is well and once where the trouble is real."""

import json
import socket
from pathlib import Path

import pytest

from pipeline import __main__ as tessera
from pipeline.data.dataset import DataConfig
from pipeline.doctor import disk, examine, machine, network, services
from pipeline.doctor.examine import Needs
from pipeline.doctor.finding import Finding, Status


@pytest.mark.parametrize(
    ("have", "status"),
    [((3, 10), "failure"), ((3, 11), "ok"), ((3, 12, 4), "ok"), ((3, 13), "ok"), ((3, 14), "warning")],
)
def test_versions(have: tuple[int, ...], status: str) -> None:
    assert machine.check_version("Python", have, ((3, 11), (3, 13))).status == status


def test_this_environment_is_supported() -> None:
    assert machine.check_torch().status is Status.OK
    assert machine.check_device().status is Status.OK
    assert network.check_loopback().status is Status.OK


def test_leftovers_in_shared_memory_are_counted(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path).status is Status.OK
    (tmp_path / "deepspeed_allreduce_buffer_0_127.0.0.1_29500_0").write_bytes(bytes(1 << 20))
    finding = machine.check_shared_memory(tmp_path)
    assert (finding.status, "1 leftovers" in finding.found) == (Status.WARNING, True)
    assert machine.check_shared_memory(tmp_path / "absent").status is Status.WARNING


def test_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert network.check_host_name().status is Status.WARNING


def test_clock_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.check_clock(tmp_path / "not/yet/there").status is Status.OK
    now = disk.time.time()
    monkeypatch.setattr(disk.time, "time", lambda: now + 60)
    assert disk.check_clock(tmp_path).status is Status.WARNING
    assert list(tmp_path.iterdir()) == []


def test_disk_holds_two_generations(tmp_path: Path) -> None:
    free = disk.shutil.disk_usage(tmp_path).free
    assert disk.check_disk(tmp_path, free // 4).status is Status.OK
    assert disk.check_disk(tmp_path, free).status is Status.FAILURE


def test_tracking_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "mlflow.db"
    assert services.check_tracking(f"sqlite:///{absent}").status is Status.OK
    assert not absent.exists(), "a preflight makes no database"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert services.check_tracking("http://127.0.0.1:9").status is Status.WARNING  # nothing listens on the discard port


def test_data_that_is_not_there(tmp_path: Path) -> None:
    finding = services.check_data(f"{tmp_path}/none", DataConfig(train=f"{tmp_path}/none"))
    assert finding.status is Status.FAILURE
    assert "not found" in finding.found and "tessera-data" in finding.remedy


def test_command_prints_remedies_and_fails_only_on_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("a", Status.OK, "fine"), Finding("b", Status.WARNING, "odd", "do this")]
    monkeypatch.setattr("pipeline.commands.doctor.examine", lambda needs: iter(findings))
    monkeypatch.setattr("sys.argv", ["tessera", "doctor"])
    assert tessera.main() == 0
    assert capsys.readouterr().out.splitlines() == ["ok       a: fine", "warning  b: odd", "           -> do this"]
    findings.append(Finding("c", Status.FAILURE, "bad", "do that"))
    monkeypatch.setattr("sys.argv", ["tessera", "doctor", "--json"])
    assert tessera.main() == 1
    assert [row["status"] for row in json.loads(capsys.readouterr().out)] == ["ok", "warning", "failure"]


def test_without_a_config_only_the_machine_is_examined() -> None:
    checks = {finding.check for finding in examine.examine(Needs())}
    assert {"Python", "torch", "disk", "tracking"} <= checks
    assert not any(check.startswith("data") for check in checks)
