"""Train as a Slurm job that saves before its time is up, queues itself again, and goes on.

Example:
    tessera-launch slurm configs/diffusion/shapes.yaml run=runs/mine --nodes 4 --nproc 8 --time 24:00:00 \\
        --sbatch=--partition=gpu --sbatch=--account=me
"""

import argparse
import re
import shutil
from pathlib import Path

from launch.follow import follow
from launch.job import add_arguments, make_job, positive, render, submit, write_job
from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera-launch slurm`."""
    add_arguments(parser)
    add = parser.add_argument
    add("--nodes", type=positive, required=True, metavar="N", help="machines")
    add("--nproc", type=positive, default=8, metavar="K", help="ranks per machine, one per GPU (default: 8)")
    add("--time", metavar="D-HH:MM:SS", help="limit of one start; at its end the job queues itself again")
    add("--cpus-per-rank", type=positive, default=8, metavar="C", help="CPU cores per rank (default: 8)")
    add("--cpu", action="store_true", help="ask for no GPUs")
    add("--follow", action="store_true", help="show the log until the job has ended, over all its starts")
    add("--sbatch", action="append", default=[], metavar="--KEY=VALUE", help="one more #SBATCH line each")


def run(args: argparse.Namespace) -> int:
    """Check, copy, render, submit; prints the job number and the log.

    Raises:
        UserError: an option that is none, or no sbatch on this machine.
    """
    job = make_job(args, args.nodes, args.nproc)
    options = [f"--time={args.time}"] * bool(args.time) + args.sbatch
    check_directives(job.run, options)
    script = render(
        "slurm.sbatch",
        job,
        cpus=args.nproc * args.cpus_per_rank,
        gpus=0 if args.cpu else args.nproc,
        options=options,
    )
    if args.dry_run:
        print(script, end="")
        return EXIT_DONE
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not on this machine; run this on a login node, or look at the script with --dry-run")
    path, log = write_job(job, "slurm.sbatch", script), job.folder / "slurm-%j.out"
    code, number = submit(path, log)
    return follow(number, Path(str(log).replace("%j", number))) if args.follow and not code else code


def check_directives(folder: Path, options: list[str]) -> None:
    """`#SBATCH` lines have no quoting: refuse what would end one or start another.

    Raises:
        UserError: an option that does not read --key or --key=value, or a folder with spaces.
    """
    for option in options:
        if not re.fullmatch(r"--[a-z][a-z-]*(=\S+)?", option):
            raise UserError(f"--sbatch {option!r}: write --sbatch=--key=value, without spaces")
    if re.search(r"\s", str(folder)):
        raise UserError(f"{str(folder)!r}: Slurm's log path cannot hold spaces; name another folder")
