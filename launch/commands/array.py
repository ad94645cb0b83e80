"""Spread a data tool over a Slurm job array: each task makes its share of the shards, and goes on where it stopped.

Example:
    tessera-launch array --parts 64 --folder runs/shard-web -- shard urls.parquet --out s3://bucket/shards --size 512
    tessera-launch array --parts 16 --folder runs/encode --sbatch=--gpus=1 -- \\
        precompute --model models:/vq-autoencoder@champion --data s3://bucket/shards --out s3://bucket/latents

Behind `--` stands `shard` or `precompute` of tessera-data with its arguments. The part that ends last writes the
manifest.
"""

import argparse
import shlex
import shutil
from pathlib import Path

from launch.commands.slurm import check_directives
from launch.job import positive, render_template, submit
from launch.snapshot import copy_code
from pipeline import storage
from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError

SPREADS = {
    "shard": (
        "OMP_NUM_THREADS=1",  # it brings a process for each core
        '--shard-range "$SLURM_ARRAY_TASK_ID/{parts}" --num-workers "$SLURM_CPUS_PER_TASK"',
    ),
    "precompute": (
        'RANK="$SLURM_ARRAY_TASK_ID" WORLD_SIZE={parts} OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"',
        "",
    ),
}
"""Commands of tessera-data: the variables and the arguments by which a task of the array takes its share."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera-launch array`."""
    add = parser.add_argument
    add("--parts", type=positive, required=True, metavar="N", help="tasks of the array")
    add("--folder", type=Path, required=True, metavar="DIR", help="for the script, the copied code and the logs")
    add("--at-once", type=positive, metavar="N", help="tasks that run at the same time (default: all)")
    add("--cpus", type=positive, default=8, metavar="C", help="CPU cores of each task (default: 8)")
    add("--sbatch", action="append", default=[], metavar="--KEY=VALUE", help="one more #SBATCH line each")
    add("--dry-run", action="store_true", help="print the script, write and start nothing")
    add("words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what tessera-data shall do")


def run(args: argparse.Namespace) -> int:
    """Check, copy, render, submit; prints the job number and the logs.

    Raises:
        UserError: a command that cannot be spread, an option that is none, or no sbatch on this machine.
    """
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words or words[0] not in SPREADS:
        said = " ".join(words) or "no command"
        raise UserError(f"{said}: after -- give {' or '.join(SPREADS)} with its arguments")
    folder = args.folder.absolute()
    check_directives(folder, args.sbatch)
    values = {"name": folder.name, "parts": args.parts, "at_once": args.at_once, "cpus": args.cpus, "folder": folder}
    variables, share = (text.format(parts=args.parts) for text in SPREADS[words[0]])
    values |= {"options": args.sbatch, "variables": variables, "words": f"{shlex.join(words)} {share}".rstrip()}
    script = render_template("array.sbatch", **values)
    if args.dry_run:
        print(script, end="")
        return EXIT_DONE
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not on this machine; run this on a login node, or look at the script with --dry-run")
    copy_code(folder / "code")
    storage.write_bytes(folder / "array.sbatch", script.encode())
    return submit(folder / "array.sbatch", folder / "part-0.out")[0]
