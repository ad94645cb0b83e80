"""One job: a checked config, the shape of its world, and the script that starts it. Used by every command."""

import argparse
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.snapshot import copy_code
from pipeline import storage
from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.config import UserError, dump_config

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """What a template may ask for."""

    config_text: str
    """The resolved config as YAML."""
    run: Path
    """Run folder, absolute."""
    num_nodes: int
    """Machines."""
    num_processes: int
    """Ranks on each machine."""

    @property
    def folder(self) -> Path:
        """Where the launch leaves its own files."""
        return self.run / "launch"

    @property
    def config(self) -> Path:
        """The resolved config that the script trains."""
        return self.folder / "config.yaml"

    @property
    def name(self) -> str:
        """Name for queues and rendezvous."""
        return self.run.name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every door takes."""
    add = parser.add_argument
    add("config", help="a YAML file, such as configs/autoencoder/shapes.yaml or RUN/config.yaml")
    add("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file, such as run=DIR")
    add("--dry-run", action="store_true", help="print the script, write and start nothing")


def positive(text: str) -> int:
    """An argparse type: a whole number above zero."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least 1")
    return int(text)


def make_job(args: argparse.Namespace, num_nodes: int = 1, num_processes: int = 1) -> Job:
    """Load and check the config.

    Raises:
        UserError: the config is wrong, or its batch does not divide by the number of ranks.
    """
    from pipeline.experiment import load_experiment

    experiment = load_experiment(args.config, args.overrides)
    ranks = num_nodes * num_processes
    for batch in (*(phase.batch_size for phase in experiment.phases), experiment.trainer.batch_size):
        if batch % ranks:
            below = batch // ranks * ranks
            near = " or ".join(str(size) for size in (below, below + ranks) if size)
            raise UserError(
                f"batch_size={batch} does not divide by {num_nodes} x {num_processes} = {ranks} ranks; take {near}"
            )
    return Job(dump_config(experiment), Path(experiment.run).absolute(), num_nodes, num_processes)


def render(template: str, job: Job, **values: Any) -> str:
    """The script of `job`."""
    return render_template(template, job=job, **values)


def render_template(template: str, **values: Any) -> str:
    """A template of this folder filled in; there `{{ x | quote }}` is safe in a shell."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(template).render(python=sys.executable, here=Path.cwd(), **values)


def submit(script: Path, log: Path) -> tuple[int, str]:
    """Hand a script to sbatch and say where to look; (exit code, number of the job)."""
    answer = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if answer.returncode:
        print(f"tessera-launch: sbatch refused {script}: {answer.stderr.strip()}", file=sys.stderr)
        return EXIT_FAILED, ""
    number = answer.stdout.strip().partition(";")[0]
    print(f"job {number}; log: {str(log).replace('%j', number)}; cancel: scancel {number}", flush=True)
    return EXIT_DONE, number


def write_job(job: Job, name: str, script: str) -> Path:
    """Put code, config and script into the run folder; returns the path of the script."""
    snapshot = copy_code(job.run / "code")
    if snapshot.untracked:
        names = ", ".join(snapshot.untracked[:8]) + (", ..." if len(snapshot.untracked) > 8 else "")
        print(f"tessera-launch: not copied, since git does not track them: {names}", file=sys.stderr)
    storage.write_json(job.folder / "snapshot.json", asdict(snapshot))
    storage.write_bytes(job.config, job.config_text.encode())
    path = job.folder / name
    storage.write_bytes(path, script.encode())
    path.chmod(0o755)
    return path
