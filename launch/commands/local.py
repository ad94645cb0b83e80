"""Train in one process on this machine, from a copy of the code in the run folder.

Example:
    tessera-launch local configs/autoencoder/shapes.yaml run=runs/mine
"""

import argparse
import os

from launch.job import add_arguments, make_job, render, write_job
from pipeline.command_line import EXIT_DONE


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera-launch local`."""
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check, copy, render, and become the training process."""
    job = make_job(args)
    script = render("local.sh", job)
    if args.dry_run:
        print(script, end="")
        return EXIT_DONE
    path = write_job(job, "local.sh", script)
    os.execvp("bash", ["bash", str(path)])  # no parent in between: signals and exit code are the script's
