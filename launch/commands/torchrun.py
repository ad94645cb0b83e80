"""Train in several processes under torchrun: on this machine, or on several without a scheduler.

Example:
    tessera-launch torchrun configs/autoencoder/shapes.yaml run=runs/mine --nproc 2

With --nodes the run folder must lie on storage that all machines share. The script is then only written, and its
path printed: start it on each machine.
"""

import argparse
import os
import zlib

from launch.job import Job, add_arguments, make_job, positive, render, write_job
from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera-launch torchrun`."""
    add_arguments(parser)
    add = parser.add_argument
    add("--nproc", type=positive, required=True, metavar="K", help="processes per machine: one per GPU")
    add("--nodes", type=positive, default=1, metavar="N", help="machines (default: 1)")
    add("--head", metavar="HOST", help="where the others meet; needed with --nodes above 1")


def run(args: argparse.Namespace) -> int:
    """Check, copy, render; on one machine also become torchrun.

    Raises:
        UserError: several machines without a head, or a head without several machines.
    """
    if (args.nodes > 1) != bool(args.head):
        raise UserError(f"--nodes {args.nodes} --head {args.head}: several machines need --head HOST, one takes none")
    job = make_job(args, args.nodes, args.nproc)
    script = render("torchrun.sh", job, head=args.head, port=rendezvous_port(job))
    if args.dry_run:
        print(script, end="")
        return EXIT_DONE
    path = write_job(job, "torchrun.sh", script)
    if args.nodes > 1:
        print(f"run this on each of the {args.nodes} machines, first on {args.head}:\n  bash {path}")
        return EXIT_DONE
    os.execvp("bash", ["bash", str(path)])  # no parent in between: signals and exit code are the script's


def rendezvous_port(job: Job) -> int:
    """15000 to 29999, from the run folder: two runs rarely meet, and every machine finds the same number."""
    return 15000 + zlib.crc32(str(job.run).encode()) % 15000
