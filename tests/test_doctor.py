"""Each check of the preflight, once where all is well and once where the trouble is real."""

import json
import socket
import uuid
from pathlib import Path

import pytest

from pipeline import __main__ as tessera
from pipeline import storage
from pipeline.data.dataset import DataConfig
from pipeline.doctor import disk, examine, machine, network, services
from pipeline.doctor.examine import Needs
from pipeline.doctor.finding import Finding, Status
from tests.s3_server import S3Server


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


def test_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_compilers(("bash",)).status is Status.OK
    finding = machine.check_compilers(("bash", "no-such-compiler"))
    assert finding.status is Status.WARNING and "no no-such-compiler" in finding.found and finding.remedy


@pytest.mark.parametrize(("text", "status"), [("32768 60999", "ok"), ("1024 65535", "warning"), ("odd", "ok")])
def test_ports_that_the_kernel_hands_out(text: str, status: str, tmp_path: Path) -> None:
    (tmp_path / "range").write_text(text + "\n")
    assert network.check_ports(tmp_path / "range").status == status


@pytest.mark.slow
def test_ranks_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    finding = network.check_collective()
    assert finding.status is Status.FAILURE and "GLOO_SOCKET_IFNAME" in finding.remedy


def test_rights_on_a_folder(tmp_path: Path) -> None:
    assert disk.check_rights(str(tmp_path / "new")).status is Status.OK
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    finding = disk.check_rights(str(tmp_path / "file"))
    assert finding.status is Status.FAILURE and finding.found.startswith("cannot write")


def test_rights_on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"s3://test-{uuid.uuid4().hex[:12]}"
    storage.filesystem(bucket)[0].mkdir(bucket)
    assert disk.check_rights(f"{bucket}/runs").status is Status.OK
    finding = disk.check_rights("s3://test-no-such-bucket/runs")
    assert finding.status is Status.FAILURE and "s3:PutObject" in finding.remedy


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
    assert {"Python", "torch", "disk", "tracking", "ports", "collective", "compilers"} <= checks
    assert not any(check.startswith("data") for check in checks)
