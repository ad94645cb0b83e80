"""Write a PyTorchJob for Kubeflow's training operator: pods that save when told to go, and go on when restarted.

Example:
    tessera-launch kubernetes configs/diffusion/shapes.yaml run=/runs/mine --nodes 2 --nproc 8 \\
        --image registry.example.org/tessera:1 --claim runs > job.yaml && kubectl apply -f job.yaml

Prints the manifest and starts nothing. The image is built from launch/Dockerfile and holds the code; the claim has to
be one that all pods can write (ReadWriteMany). The run folder must lie below --mount, the data there or on s3://.
"""

import argparse
import re
from pathlib import Path

from launch.job import make_job, positive, render
from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera-launch kubernetes`."""
    add = parser.add_argument
    add("config", help="a YAML file, such as configs/autoencoder/shapes.yaml or RUN/config.yaml")
    add("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file, such as run=/runs/mine")
    add("--nodes", type=positive, default=1, metavar="N", help="pods (default: 1)")
    add("--nproc", type=positive, default=8, metavar="K", help="ranks in each pod, one per GPU (default: 8)")
    add("--image", required=True, metavar="NAME", help="the image that launch/Dockerfile gave")
    add("--claim", required=True, metavar="NAME", help="persistent volume claim for the run folder, ReadWriteMany")
    add("--mount", type=Path, default=Path("/runs"), metavar="DIR", help="where the pods see it (default: /runs)")
    add(
        "--secret",
        default="tessera",
        metavar="NAME",
        help="secret with keys for S3 and MLflow (default: tessera)",
    )
    add("--cpus", type=positive, default=64, metavar="C", help="CPU cores of a pod (default: 64)")
    add("--memory", default="256Gi", metavar="SIZE", help="memory of a pod (default: 256Gi)")
    add("--restarts", type=positive, default=100, metavar="N", help="starts after failures (default: 100)")
    add("--cpu", action="store_true", help="ask for no GPUs")


def run(args: argparse.Namespace) -> int:
    """Check and print.

    Raises:
        UserError: the config is wrong, its batch does not divide, or its run folder is not on the claim.
    """
    job = make_job(args, args.nodes, args.nproc)
    if args.mount not in job.run.parents:
        raise UserError(f"run={job.run}: is not below --mount {args.mount}; a pod's own disk is gone with the pod")
    roles = [("Master", 1)] + [("Worker", args.nodes - 1)] * (args.nodes > 1)
    values = {name: getattr(args, name) for name in ("image", "claim", "mount", "secret", "cpus", "memory", "restarts")}
    print(render("pytorchjob.yaml.j2", job, name=label_of(job.name), roles=roles, gpus=not args.cpu, **values), end="")
    return EXIT_DONE


def label_of(name: str) -> str:
    """A name that Kubernetes takes: lower case, digits and dashes, at most 50 (the operator appends to it)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50] or "tessera"
