"""What a config needs before it runs: parameters, memory, FLOPs, storage, time and cost, and what binds.

Example:
    tessera plan configs/autoencoder/shapes.yaml
    tessera plan configs/diffusion/shapes.yaml autoencoder=configs/autoencoder/shapes.yaml --gpu h100 --gpus 8

Nothing is allocated, so a laptop plans any model. Before a first stage is trained, autoencoder= may name its config.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from math import prod
from typing import TYPE_CHECKING

from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError, parse_config

if TYPE_CHECKING:  # torch comes with them: `--help` does without
    from pipeline.data.shards import Manifest
    from pipeline.experiment import ExperimentConfig
    from pipeline.models.autoencoder import AutoencoderConfig
    from pipeline.plan.measure import Part
    from pipeline.plan.summary import Plan, World


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera plan`."""
    add = parser.add_argument
    add("config", help="a YAML file, such as configs/autoencoder/shapes.yaml")
    add("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file")
    add("--gpu", default="h100", metavar="KIND", help="a100-40, a100, h100, h200, b200, l40s, rtx4090 (default: h100)")
    add("--gpus", type=int, default=1, metavar="N", help="how many (default: 1)")
    add("--gpus-per-node", type=int, default=8, metavar="K", help="how many in one machine (default: 8)")
    add("--price", type=float, metavar="X", help="money for one GPU-hour; without it the cost is in GPU-hours")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Load, measure, estimate, print.

    Raises:
        UserError: a wrong config, an unknown GPU, or a batch that the GPUs do not divide.
    """
    from pipeline.experiment import load_experiment, phases_of
    from pipeline.plan.summary import describe

    plans = [_plan_of(phase, args) for phase in phases_of(load_experiment(args.config, args.overrides))]
    if args.json:
        print(json.dumps(asdict(plans[0]) if len(plans) == 1 else [asdict(plan) for plan in plans], indent=2))
    else:
        print("\n\n".join(describe(plan, args.price) for plan in plans))
    return EXIT_DONE


def _plan_of(config: "ExperimentConfig", args: argparse.Namespace) -> "Plan":
    """The plan of one phase."""
    from pipeline.plan.summary import make_plan

    world = world_of(config, args)
    manifest = manifest_of(config)
    if manifest is None:
        print(f"tessera plan: no manifest at {config.data.train}: planning without its sizes", file=sys.stderr)
    parts = parts_of(config, manifest)
    return make_plan(parts, storage_of(config, parts, manifest), world)


def world_of(config: "ExperimentConfig", args: argparse.Namespace) -> "World":
    """The machines of the command line with the settings of the config.

    Raises:
        UserError: an unknown GPU, or a batch that the GPUs do not divide.
    """
    from pipeline.plan.estimate import GPUS
    from pipeline.plan.summary import World

    batch, engine = config.trainer.batch_size, config.engine
    if args.gpu not in GPUS:
        raise UserError(f"--gpu {args.gpu}: not known; take one of {', '.join(GPUS)}")
    if args.gpus < 1 or batch % args.gpus:
        raise UserError(f"--gpus {args.gpus}: must divide trainer.batch_size={batch}; change one of them")
    return World(
        gpu=args.gpu,
        num_gpus=args.gpus,
        gpus_per_node=args.gpus_per_node,
        batch_size=batch,
        total_samples=config.trainer.total_samples,
        zero_stage=engine.zero_stage if engine.kind == "deepspeed" else 0,
        bf16=engine.precision == "bf16",
        bucket_elements=engine.reduce_bucket_size,
        overlaps=engine.kind == "accelerate",  # DDP; our DeepSpeed exchanges after the backward pass
    )


def parts_of(config: "ExperimentConfig", manifest: "Manifest | None") -> "list[Part]":
    """The measured networks of one training step; the manifest says what is stored and need not be computed."""
    from pipeline.roofline import step_parts

    first = first_stage_of(config) if config.autoencoder else None
    return step_parts(config.stage, config.data.image_size, config.engine.precision == "bf16", manifest, first)


def first_stage_of(config: "ExperimentConfig") -> "AutoencoderConfig":
    """The autoencoder that a second stage learns on: of a trained model, or of the config that will train it.

    Raises:
        UserError: neither is there.
    """
    from pipeline.checkpoint.package import load_package
    from pipeline.experiment import load_experiment
    from pipeline.export import resolve
    from pipeline.models.autoencoder import AutoencoderConfig

    assert config.autoencoder is not None, "ExperimentConfig checks it"
    if config.autoencoder.endswith(".yaml"):
        stage = load_experiment(config.autoencoder).stage
        if stage.kind != "autoencoder":
            raise UserError(f"autoencoder={config.autoencoder}: trains no autoencoder; name the first stage's config")
        return stage.model
    package = load_package(resolve(config.autoencoder))
    return parse_config(package.config, AutoencoderConfig, source=str(package.folder))


def manifest_of(config: "ExperimentConfig") -> "Manifest | None":
    """The manifest of the training data; None while there is none, or none that this machine can reach."""
    from pipeline.data.dataset import parts_of
    from pipeline.data.shards import load_manifest

    try:
        manifests = [load_manifest(part.url) for part in parts_of(config.data.train)]
    except (UserError, OSError):
        return None
    return replace(manifests[0], shards=tuple(shard for manifest in manifests for shard in manifest.shards))


def storage_of(config: "ExperimentConfig", parts: "list[Part]", manifest: "Manifest | None") -> dict[str, int]:
    """Bytes at rest: data, the latents that a first stage will give, and checkpoints with one being written."""
    from pipeline.plan.estimate import generation_bytes

    held = {"data": manifest.num_bytes} if manifest else {}
    if manifest and config.stage.kind == "autoencoder":
        held["latents"] = manifest.num_samples * prod(config.stage.model.latent_shape) * 4  # stored as float32
    return held | {"checkpoints": (config.trainer.keep_checkpoints + 1) * generation_bytes(parts)}
