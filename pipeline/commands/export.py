"""Write a trained model as one folder that loads by itself: averaged weights, config, lineage, card and preview.

With --format the folder is one that diffusers, or the code of CompVis (taming-transformers, latent-diffusion), opens.

Example:
    tessera export runs/shapes-unet --out shapes-unet
    tessera export models:/vq-autoencoder@champion --out first-stage --format diffusers
    tessera export models:/latent-unet@champion --out champion --json
"""

import argparse
import json
import shutil
from pathlib import Path

from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera export`."""
    parser.add_argument("model", metavar="REF", help="run or exported folder, models:/NAME@ALIAS or models:/NAME/7")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make; must not be there yet")
    parser.add_argument(
        "--format",
        choices=("native", "diffusers", "compvis"),
        default="native",
        help="whose files to write (default: our own)",
    )
    parser.add_argument(
        "--ema-width", type=float, metavar="W", help="of a run: rebuild the average of that relative width, e.g. 0.07"
    )
    parser.add_argument("--json", action="store_true", help="print folder, kind and digest as JSON")


def run(args: argparse.Namespace) -> int:
    """Find the model, write its folder whole or not at all, say what it is."""
    from pipeline.checkpoint.package import load_package
    from pipeline.export import export_run, resolve
    from pipeline.formats import write

    if args.out.exists():
        raise UserError(f"{args.out}: is there already; choose another --out or remove it")
    source = resolve(args.model) if args.ema_width is None else export_run(args.model, args.ema_width)
    package = load_package(source)
    partial = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if args.format == "native":
        args.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(package.folder, partial)
    else:
        partial.mkdir(parents=True)
        try:
            write(args.format, package, partial)
        except UserError:
            shutil.rmtree(partial)
            raise
    partial.rename(args.out)
    if args.json:
        what = {"folder": str(args.out), "kind": package.kind, "digest": package.digest, "format": args.format}
        print(json.dumps(what))
    else:
        seen = package.lineage.get("samples_seen", 0)
        print(f"{args.out}: {package.kind} ({args.format}), {seen:,} samples seen, digest {package.digest[:12]}")
    return EXIT_DONE
