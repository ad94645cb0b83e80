"""Encode every picture of a dataset once with a trained autoencoder, so that the second stage trains on latents.

The latent shards have the names, keys and order of the picture shards, and a stamp that says which autoencoder made
them; training refuses latents of another one. The same command again goes on where it stopped. Under torchrun, or in a
Slurm array (`tessera-launch array`), every process takes its share of the shards and the GPU of its LOCAL_RANK.

Example:
  tessera-data precompute --model runs/vq --data shards --out latents
  torchrun --nproc-per-node 8 -m data_tools precompute --model models:/vq-autoencoder@champion \\
      --data s3://bucket/shards --out s3://bucket/latents --dtype float16 --batch-size 256 \\
      --text ViT-H-14 laion2b_s32b_b79k penultimate
"""

import argparse
import json
import os
from typing import Any

from pipeline.config import UserError, parse_config


def configure(parser: argparse.ArgumentParser) -> None:
    """The model, where from, where to, and how."""
    add = parser.add_argument
    add("--model", required=True, metavar="REF", help="models:/name@alias, models:/name/7, run or exported folder")
    add("--data", required=True, metavar="URL", help="shards of pictures")
    add("--out", required=True, metavar="URL", help="folder or URL for the latents")
    add("--image-size", type=int, metavar="S", help="side in pixels (default: the autoencoder's resolution)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="type of the stored latents")
    add("--batch-size", type=int, default=64, metavar="N", help="pictures encoded at once (default 64)")
    add(
        "--text",
        nargs=3,
        metavar=("NAME", "WEIGHTS", "LAYER"),
        help="store the captions' states of this frozen tower too: as stage.text of the second stage's config",
    )
    add(
        "--mask-padding",
        action="store_true",
        help="store no states behind a caption's end: with stage.text.mask_padding of the second stage's config",
    )
    add("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Encode this process's share, and say what a sample cost."""
    import torch

    from data_tools.precompute import LatentEncoder, PrecomputeConfig, precompute
    from pipeline.checkpoint.package import load_package
    from pipeline.export import resolve
    from pipeline.models.text import PretrainedTextConfig, build_text_tower

    settings = {"image_size": args.image_size, "dtype": args.dtype, "batch_size": args.batch_size}
    config = parse_config(settings, PrecomputeConfig, source="tessera-data precompute")
    rank, world_size, local_rank = (_environment(name, default) for name, default in _PLACE.items())
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    text = None
    if args.mask_padding and not args.text:
        raise UserError("--mask-padding: there are no text states without --text NAME WEIGHTS LAYER")
    if args.text:
        fields = dict(zip(("name", "weights", "layer"), args.text, strict=True)) | {"mask_padding": args.mask_padding}
        text = build_text_tower(parse_config(fields, PretrainedTextConfig, source="--text"))
    encoder = LatentEncoder(load_package(resolve(args.model)), config, device, text)
    summary = precompute(encoder, args.data, args.out, config, rank, world_size)
    print(json.dumps(summary) if args.json else _sentence(summary))
    return 0


_PLACE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _environment(name: str, default: int) -> int:
    """An integer that torchrun or the job script sets."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise UserError(f"{name}={os.environ[name]!r}: not a number; unset it or let torchrun set it") from None


def _sentence(summary: dict[str, Any]) -> str:
    """What was written, at what cost."""
    samples, seconds = summary["samples"], summary["seconds"]
    line = f"{summary['out']}: {samples} latents in {summary['shards_written']} shards"
    if samples:
        cost = f"{seconds * 1e3 / samples:.2f} ms and {summary['cpu_seconds'] * 1e3 / samples:.2f} CPU ms a sample"
        line += f", {samples / max(seconds, 1e-9):.0f} a second, {cost}"
    if summary["shards_skipped"]:
        line += f"; {summary['shards_skipped']} shards were there"
    if summary["left_out"]:
        line += f"; {summary['left_out']} unreadable pictures left out"
    return line + ("" if summary["digest"] else "; other processes still work on the rest")
