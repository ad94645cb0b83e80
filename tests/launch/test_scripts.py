"""The rendered scripts, run for real by bash; where a script calls Slurm, small stand-ins record what it asked for."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from launch.job import Job, render

SLURM = {"cpus": 16, "gpus": 2, "options": ["--time=1:00:00", "--partition=long"]}
PROBE = """
import os, sys
import torch.distributed as dist
import torch
dist.init_process_group("gloo")
total = torch.tensor(int(os.environ["RANK"]) + 1)
dist.all_reduce(total)
open(os.environ["PROBE"] + os.environ["RANK"], "w").write(f"{total} {os.environ['OMP_NUM_THREADS']} {sys.argv[1:]}")
dist.destroy_process_group()
"""


def make_job(run: Path, **values: int) -> Job:
    return Job(config_text="", run=run, **{"num_nodes": 1, "num_processes": 2, **values})


def write_package(job: Job, source: str) -> None:
    """Stand-in for the copied code: a `pipeline` whose __main__ is `source`."""
    package = job.run / "code/pipeline"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(source)


def bash(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = folder / "script.sh"
    path.write_text(script)
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("local.sh", {}),
        ("torchrun.sh", {"head": None, "port": 0}),
        ("torchrun.sh", {"head": "n1", "port": 15001}),
        ("slurm.sbatch", SLURM),
    ],
)
def test_bash_accepts_every_script(template: str, values: dict, tmp_path: Path) -> None:
    script = render(template, make_job(tmp_path / "a run's folder", num_nodes=2), **values)
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_local_runs_the_copied_code_whatever_the_folder_is_called(tmp_path: Path) -> None:
    job = make_job(tmp_path / "a run's $folder")
    write_package(job, "import sys; print(__file__); print(sys.argv[1:])")
    done = bash(render("local.sh", job), tmp_path)
    assert done.stdout.splitlines() == [
        str(job.run / "code/pipeline/__main__.py"),
        str(["train", str(job.run / "launch/config.yaml")]),
    ], done.stderr


def test_torchrun_on_one_machine_meets_on_loopback(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run")
    write_package(job, PROBE)
    done = bash(render("torchrun.sh", job, head=None, port=0), tmp_path, PROBE=f"{tmp_path}/rank", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert (tmp_path / f"rank{rank}").read_text() == f"3 1 ['train', '{job.config}']"


def test_torchrun_refuses_a_head_that_has_no_address(tmp_path: Path) -> None:
    script = render("torchrun.sh", make_job(tmp_path, num_nodes=2), head="no-such-host.invalid", port=15001)
    done = bash(script, tmp_path)
    assert (done.returncode, done.stderr.strip()) == (1, "no address for the head node no-such-host.invalid")


def test_slurm_directives(tmp_path: Path) -> None:
    script = render("slurm.sbatch", make_job(tmp_path / "run", num_nodes=4), **SLURM)
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=run",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--cpus-per-task=16",
        "--gpus-per-node=2",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@300",
        f"--output={tmp_path}/run/launch/slurm-%j.out",
        "--time=1:00:00",
        "--partition=long",
    ]


SCONTROL = """echo "scontrol $*" >> "$LOG"
case "$*" in
    "show hostnames"*) echo "$NODES";;
    "--oneliner show node"*) echo "NodeName=$4 CPUTot=16 NodeAddr=10.0.0.1 NodeHostName=$4";;
esac"""


class Cluster:
    """Stand-ins for scontrol and srun on the PATH; `step` is what srun does."""

    def __init__(self, folder: Path, job: Job, step: str) -> None:
        self.folder, self.job, self.log = folder, job, folder / "log"
        self._command("scontrol", SCONTROL)
        self._command("sbatch", 'echo "sbatch $*" >> "$LOG"')
        self._command("sinfo", 'printf "1\n2\n"')  # three nodes are up
        self._command("srun", f'echo "srun $1 $HEAD $PORT $SRUN_CPUS_PER_TASK" >> "$LOG"\n{step}')
        (job.run / "checkpoints/gen-000001").mkdir(parents=True)
        (job.run / "checkpoints/gen-000001/manifest.json").touch()
        job.folder.mkdir()

    def _command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def end(self, **variables: str) -> tuple[int, str]:
        """Exit code and stderr of one start."""
        batch = self.start(**variables)
        error = batch.communicate(timeout=30)[1]
        return batch.returncode, error

    def start(self, nodes: str = "n1\nn2", **variables: str) -> subprocess.Popen[str]:
        (self.folder / "job.sh").write_text(render("slurm.sbatch", self.job, **SLURM))
        slurm = {"SLURM_JOB_NUM_NODES": str(self.job.num_nodes), "SLURM_JOB_PARTITION": "all"}
        slurm |= {"SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_ID": "30007", "SLURM_JOB_NODELIST": "n[1-2]"}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, **slurm, **variables, "PATH": path, "LOG": str(self.log), "NODES": nodes}
        command = ["bash", str(self.folder / "job.sh")]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


SAVE_WHEN_STOPPED = """until [ -e "$TESSERA_STOP_FILE" ]; do sleep 0.05; done
mkdir -p {new}; touch {new}/manifest.json; echo saved >> "$LOG"; exit 1"""


def stop_at_time_limit(cluster: Cluster) -> tuple[int, str]:
    """Send USR1 to the batch shell alone, as Slurm does, once srun runs; returns exit code and stderr."""
    batch = cluster.start()
    while not any(call.startswith("srun") for call in cluster.calls()):
        time.sleep(0.02)
    subprocess.run(["kill", "-USR1", str(batch.pid)], check=True)
    error = batch.communicate(timeout=30)[1]
    return batch.returncode, error


def test_time_limit_saves_first_and_requeues_after_srun_has_ended(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", num_nodes=2)
    cluster = Cluster(tmp_path, job, SAVE_WHEN_STOPPED.format(new=job.run / "checkpoints/gen-000002"))
    code, error = stop_at_time_limit(cluster)
    assert code == 0, error
    assert cluster.calls() == [
        "scontrol show hostnames n[1-2]",
        "scontrol --oneliner show node n1",
        f"srun --kill-on-bad-exit=1 10.0.0.1 {15000 + 30007 % 15000} 16",
        "saved",
        "scontrol requeue 30007",
    ]


def test_a_port_where_somebody_listens_is_passed_over(tmp_path: Path) -> None:
    """As when two clusters, or a job that is just ending, share a machine."""
    cluster = Cluster(tmp_path, make_job(tmp_path / "run", num_nodes=2), "exit 0")
    for taken in range(15000, 29998):
        with suppress(OSError), socket.create_server(("127.0.0.1", taken)):
            assert cluster.end(SLURM_JOB_ID=str(taken - 15000)) == (0, "")
            assert int(cluster.calls()[-1].split()[3]) > taken
            return


def test_three_starts_in_a_row_without_a_new_checkpoint_end_the_requeues(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", num_nodes=2)
    cluster = Cluster(tmp_path, job, 'exit "$STEP_CODE"')
    ends = [cluster.end(STEP_CODE=str(code)) for code in (3, 4, 5, 6)]
    assert [code for code, _ in ends] == [0, 0, 5, 0]  # the fourth was submitted by hand
    assert ends[2][1].strip() == "three starts in a row saved nothing new: not queued again (last exit code 5)"
    assert cluster.calls().count("scontrol requeue 30007") == 3


def test_a_generation_that_never_counted_is_no_progress(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", num_nodes=2)
    cluster = Cluster(tmp_path, job, f"mkdir -p {job.run}/checkpoints/gen-00000$STEP; exit 1")
    assert [cluster.end(STEP=str(step))[0] for step in (2, 3, 4)] == [0, 0, 1]


def test_a_failure_after_a_new_checkpoint_is_always_requeued(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", num_nodes=2)
    new = f"{job.run}/checkpoints/gen-00000$STEP"
    cluster = Cluster(tmp_path, job, f"mkdir -p {new}; touch {new}/manifest.json; exit 1")
    (job.run / "checkpoints/quarantine").mkdir()  # its name sorts behind those of the generations
    assert [cluster.end(STEP=str(step)) for step in range(2, 7)] == [(0, "")] * 5
    assert cluster.calls().count("scontrol requeue 30007") == 5


@pytest.mark.parametrize(
    ("num_nodes", "first", "excluded"), [(2, "n2 n2", True), (2, "n2 n1", False), (3, "n2 n2", False)]
)
def test_a_node_that_fails_first_twice_is_excluded_where_there_are_others(
    tmp_path: Path, num_nodes: int, first: str, excluded: bool
) -> None:
    cluster = Cluster(tmp_path, make_job(tmp_path / "run", num_nodes=num_nodes), 'echo "$FIRST" >> "$FAULTS"; exit 1')
    (_, quiet), (code, said) = (cluster.end(FIRST=node) for node in first.split())
    assert quiet == ""
    assert cluster.calls()[-1] == (
        f"sbatch --exclude=n2 {tmp_path}/run/launch/slurm.sbatch" if excluded else "scontrol requeue 30007"
    )
    assert ("a new job without n2" in said) == excluded and code == int(excluded)


def test_a_user_s_mistake_is_not_requeued(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, make_job(tmp_path / "run", num_nodes=2), 'touch "$TESSERA_REFUSED_FILE"; exit 1')
    assert cluster.end() == (1, "")
    assert "scontrol requeue 30007" not in cluster.calls()


def test_a_finished_job_is_not_requeued(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, make_job(tmp_path / "run", num_nodes=2), "exit 0")
    assert cluster.end() == (0, "")
    assert "scontrol requeue 30007" not in cluster.calls()


def test_no_head_node_ends_the_job_before_srun(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, make_job(tmp_path / "run", num_nodes=2), "exit 0")
    batch = cluster.start(nodes="")
    assert "names no node" in batch.communicate(timeout=30)[1]
    assert (batch.returncode, len(cluster.calls())) == (1, 1)


def test_scripts_use_this_interpreter(tmp_path: Path) -> None:
    assert sys.executable in render("local.sh", make_job(tmp_path / "run"))
