"""Check this machine before a run: versions, device, compilers, shared memory, ports, collectives,
clock, disk, rights on S3, tracking, data.

Example:
    tessera doctor
    tessera doctor configs/diffusion/shapes.yaml run=runs/mine
    tessera doctor --data s3://bucket/train
    tessera doctor --data configs/autoencoder/f8.yaml data.num_decode_threads=16 --world-size 64

With --data only the data is looked at, and timed: whether training would be bound by the network, by decoding or by
copying, how many samples a second one rank can be fed, and the bytes fetched for each byte used.

Every finding that is not ok comes with its remedy. The exit code is 1 when a run would fail.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import EXIT_DONE, EXIT_FAILED
from pipeline.config import UserError
from pipeline.doctor.examine import Needs, examine
from pipeline.doctor.finding import Finding, Status
from pipeline.doctor.services import check_data, check_speed

if TYPE_CHECKING:
    from pipeline.experiment import ExperimentConfig

BATCH_SIZE = 64
"""Samples of a batch where there is no config to say it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera doctor`."""
    parser.add_argument("config", nargs="?", help="check what this config needs as well: its data, disk and tracking")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file")
    parser.add_argument("--data", metavar="CONFIG|URL", help="time the data of a config, or of a dataset")
    parser.add_argument("--world-size", type=int, default=1, help="ranks that will read it (default 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each stage of --data (default 2)")
    parser.add_argument("--json", action="store_true", help="print a list of findings")


def run(args: argparse.Namespace) -> int:
    """Examine, print, and say by the exit code whether a run would fail."""
    if args.world_size < 1 or args.seconds <= 0:
        raise UserError(f"--world-size {args.world_size}, --seconds {args.seconds:g}: take more than 0")
    found: list[Finding] = []
    for finding in _examine_data(args) if args.data else examine(_needs(args)):
        found.append(finding)
        if not args.json:
            print(f"{finding.status:<8} {finding.check}: {finding.found}", flush=True)
            if finding.remedy:
                print(f"{'':<8}   -> {finding.remedy}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    return EXIT_FAILED if any(finding.status is Status.FAILURE for finding in found) else EXIT_DONE


def _examine_data(args: argparse.Namespace) -> Iterator[Finding]:
    """The data of a config or at a URL: whether it is whole, and how fast it comes."""
    from pipeline.data.dataset import DataConfig
    from pipeline.experiment import load_experiment

    data, batch_size = DataConfig(train=args.data), BATCH_SIZE
    if args.data.endswith((".yaml", ".yml")):
        overrides = [word for word in (args.config, *args.overrides) if word]
        config = load_experiment(args.data, overrides)
        data, batch_size = config.data, -(-config.trainer.batch_size // args.world_size)
    whole = [check_data(url, data) for url in data.urls]
    yield from whole
    if all(finding.status is Status.OK for finding in whole):
        yield check_speed(data, batch_size, args.world_size, args.seconds)


def _needs(args: argparse.Namespace) -> Needs:
    """What the config asks of the machine; the general checks alone without one."""
    if args.config is None:
        return Needs()
    from pipeline.experiment import load_experiment, phases_of  # torch comes with it, and the general checks come first

    config = load_experiment(args.config, args.overrides)
    data = [one.data for one in phases_of(config)]
    return Needs(Path(config.run), _state_bytes(config), config.tracking.uri, data, config.trainer.checkpoint_mirror)


def _state_bytes(config: "ExperimentConfig") -> int | None:
    """Size of one generation; None where the first stage, and with it the latent's size, is not known yet."""
    from pipeline.commands.plan import manifest_of, parts_of
    from pipeline.plan.estimate import generation_bytes

    try:
        return generation_bytes(parts_of(config, manifest_of(config)))
    except UserError:
        return None
