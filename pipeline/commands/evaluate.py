"""Measure a model on held-out data; the figures and the protocol they were measured by go into its evaluation.json.

An autoencoder is judged by its reconstructions. A latent UNet draws the captions of the data, which an exact reader
of drawn shapes checks where they describe shapes, and undoes noise on the data's latents; one that enlarges pictures
is judged by the originals. --clip judges any caption's picture by a CLIP model.

Example:
    tessera evaluate --model runs/demo/unet --data runs/demo/latents/held-out --num 200
    torchrun --nproc-per-node 8 -m pipeline evaluate --model models:/vq-autoencoder@candidate --data s3://bucket/val
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError

if TYPE_CHECKING:
    from pipeline.checkpoint.package import Package
    from pipeline.data.loader import OrderedReader
    from pipeline.distributed.process import Process

Measured = tuple[dict[str, float], dict[str, Any]]
"""The figures by name, and the stamp of the protocol."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera evaluate`."""
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/7, run or exported folder")
    parser.add_argument("--data", required=True, help="shards of pictures; for a latent UNet its latents do as well")
    parser.add_argument("--num", type=int, help="measure on the first NUM samples only (default: all)")
    parser.add_argument("--image-size", type=int, metavar="S", help="side in pixels (default: the autoencoder's)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples in memory at once, over all ranks")
    clip = "score pictures by this CLIP model: an open_clip name, and a local file or a tag"
    parser.add_argument("--clip", nargs=2, metavar=("NAME", "WEIGHTS"), help=clip)
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Resolve, measure, write, print."""
    from pipeline.checkpoint.package import AUTOENCODER_KIND, EVALUATION, load_package
    from pipeline.data.shards import load_manifest
    from pipeline.distributed import process as processes
    from pipeline.export import resolve
    from pipeline.storage import write_json
    from pipeline.tracking.journal import FOLDER as JOURNAL
    from pipeline.tracking.report import write_report

    process = processes.start()
    package = load_package(processes.on_main(process, lambda: resolve(args.model)))
    measure = _measure_autoencoder if package.kind == AUTOENCODER_KIND else _measure_unet
    metrics, protocol = measure(package, args, process)
    figures = {
        "package_digest": package.digest,
        "data_digest": load_manifest(args.data).digest,
        "metrics": metrics,
        "protocol": protocol,
    }
    if process.is_main:
        for path in filter(None, (package.folder / EVALUATION, args.out)):
            write_json(path, figures)
        if (Path(args.model) / JOURNAL).is_dir():  # a run: its page shows the new figures
            write_report(args.model)
        print(json.dumps(figures, indent=2) if args.json else _table(figures))
    processes.finish()
    return EXIT_DONE


def _measure_autoencoder(package: "Package", args: argparse.Namespace, process: "Process") -> Measured:
    """Reconstructions of every picture, once, on all ranks."""
    import torch

    from pipeline.data.transforms import to_model, to_uint8
    from pipeline.evaluate.protocol import RECONSTRUCTION, stamp
    from pipeline.evaluate.reconstruction import CodebookMeter, PictureMeter
    from pipeline.models.packaged import load_autoencoder

    autoencoder = load_autoencoder(package).to(process.device)
    size = autoencoder.config.resolution
    pictures = PictureMeter(process.device)
    codebook = CodebookMeter(autoencoder.config.quantizer.num_codes, process.device)
    with torch.no_grad(), _open(args, size, process) as reader:
        for batch in reader.batches(last=args.num):
            if batch.images is None:
                raise UserError(f"{args.data}: holds latents; an autoencoder is judged on pictures")
            images = batch.images.to(process.device)  # [B, 3, H, W]
            restored = autoencoder(to_model(images))
            pictures.update(to_uint8(restored.images), images)
            codebook.update(restored.quantized.codes)
    protocol = stamp(RECONSTRUCTION, reader.manifest.digest, _num_samples(args, reader), size)
    return {**pictures.compute(), **codebook.compute()}, protocol


def _measure_unet(package: "Package", args: argparse.Namespace, process: "Process") -> Measured:
    """The loss on every sample, and pictures for the captions or the small pictures of the data."""
    from pipeline.evaluate.protocol import stamp
    from pipeline.generate import Generator
    from pipeline.stages.diffusion_evaluation import UNetMeter

    generator = Generator.load(package.folder, process.device)
    size = args.image_size or generator.sampling.image_size or generator.autoencoder.config.resolution
    meter = UNetMeter(generator, size, tuple(args.clip) if args.clip else None)
    with _open(args, size, process) as reader:
        meter.measure(reader.batches(last=args.num))
    protocol = stamp(
        meter.protocol() | {"weights": package.lineage.get("weights")},
        reader.manifest.digest,
        _num_samples(args, reader),
        size,
    )
    return meter.compute(), protocol


def _open(args: argparse.Namespace, image_size: int, process: "Process") -> "OrderedReader":
    """The data, each sample once over all ranks."""
    from pipeline.data.dataset import DataConfig
    from pipeline.data.loader import OrderedReader

    config = DataConfig(train=args.data, image_size=image_size)
    return OrderedReader(args.data, config, process.rank, process.world_size, batch_size=args.batch_size)


def _num_samples(args: argparse.Namespace, reader: "OrderedReader") -> int:
    return min(args.num or reader.manifest.num_samples, reader.manifest.num_samples)


def _table(figures: dict[str, Any]) -> str:
    """The figures, a line each, under the model and the data that they belong to."""
    lines = [f"{name:<28}{value:.4f}" for name, value in sorted(figures["metrics"].items())]
    head = f"model {figures['package_digest'][:12]} on data {figures['data_digest'][:12]}"
    return "\n".join([f"{head}, {figures['protocol']['num_samples']} samples", *lines])
