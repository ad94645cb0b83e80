"""Train either stage from a config. The same command again resumes, on any number of ranks and any ZeRO stage.

Example:
    tessera train configs/autoencoder/shapes.yaml run=runs/mine trainer.batch_size=32
    torchrun --nproc-per-node 2 -m pipeline train configs/diffusion/shapes.yaml engine.zero_stage=3
"""

import argparse
import os

from pipeline.command_line import EXIT_DONE, EXIT_FAILED


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera train`."""
    parser.add_argument("config", help="a YAML file, such as configs/autoencoder/shapes.yaml or RUN/config.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def run(args: argparse.Namespace) -> int:
    """Load, build, fit, close."""
    from pipeline.config import dump_config
    from pipeline.distributed.stop import STOP_FILE, refusal_noted
    from pipeline.experiment import is_finished, load_experiment, train

    config = load_experiment(args.config, args.overrides)
    if args.dry_run:
        print(dump_config(config), end="")
        return EXIT_DONE
    if is_finished(config):
        if os.environ.get("RANK", "0") == "0":
            print(f"{config.run}: already trained on {config.trainer.total_samples} samples")
        return EXIT_DONE
    # A stop that a launcher asked for is no failure: srun and torchrun would end the ranks that still save.
    with refusal_noted():
        finished = train(config) or STOP_FILE in os.environ
    return EXIT_DONE if finished else EXIT_FAILED
