"""Measure a model on held-out data; the figures and the protocol they were measured by go into its evaluation.json.

An autoencoder is judged by its reconstructions; some of them, under their pictures, are reconstructions.png beside the
figures. A latent UNet draws the captions of the data, which an exact reader of drawn shapes checks where they describe
shapes, and undoes noise on the data's latents; one that enlarges pictures is judged by the originals. --clip judges any
caption's picture by a CLIP model.

Example:
    tessera evaluate --model runs/demo/unet --data runs/demo/latents/held-out --num 200
    tessera evaluate --model runs/f8/autoencoder --data VALIDATION --lpips vgg16-397923af.pth --rfid INCEPTION.pth
    torchrun --nproc-per-node 8 -m pipeline evaluate --model models:/vq-autoencoder@candidate --data s3://bucket/val
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch

    from pipeline.checkpoint.package import Package
    from pipeline.data.batch import Batch
    from pipeline.data.loader import OrderedReader
    from pipeline.distributed.process import Process

Measured = tuple[dict[str, float], dict[str, Any]]
"""The figures by name, and the stamp of the protocol."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera evaluate`."""
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/7, run or exported folder")
    parser.add_argument("--data", required=True, help="shards of pictures; for a latent UNet its latents do as well")
    # not --num, of which this is an abbreviation: torchrun would take that for an option of its own
    parser.add_argument(
        "--num-samples", dest="num", type=int, metavar="N", help="measure on the first N (default: all)"
    )
    parser.add_argument("--image-size", type=int, metavar="S", help="side in pixels (default: the autoencoder's)")
    parser.add_argument("--tile", type=int, metavar="S", help="take larger pictures through the autoencoder in tiles")
    parser.add_argument("--batch-size", type=int, default=64, help="samples in memory at once, over all ranks")
    clip = "score pictures by this CLIP model: an open_clip name, and a local file or a tag"
    parser.add_argument("--clip", nargs=2, metavar=("NAME", "WEIGHTS"), help=clip)
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="measure LPIPS with these weights of VGG16")
    parser.add_argument("--rfid", type=Path, metavar="FILE", help="measure rFID with these weights of Inception (2015)")
    parser.add_argument("--fid", type=Path, metavar="FILE", help="the same weights, for the FID of what a UNet draws")
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Resolve, measure, write, print."""
    from pipeline.checkpoint.package import AUTOENCODER_KIND, EVALUATION, load_package
    from pipeline.distributed import process as processes
    from pipeline.export import resolve
    from pipeline.storage import write_json
    from pipeline.tracking.journal import FOLDER as JOURNAL
    from pipeline.tracking.report import write_report

    for name, value in (("num-samples", args.num), ("batch-size", args.batch_size), ("image-size", args.image_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: take more than 0")
    process = processes.start()
    package = load_package(processes.on_main(process, lambda: resolve(args.model)))
    _refuse_idle(package.kind, args)
    measure = _measure_autoencoder if package.kind == AUTOENCODER_KIND else _measure_unet
    metrics, protocol = measure(package, args, process)
    figures = {
        "package_digest": package.digest,
        "data_digest": protocol["data_digest"],
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


def _refuse_idle(kind: str, args: argparse.Namespace) -> None:
    """Refuse a judge that this kind of model has no work for."""
    from pipeline.checkpoint.package import AUTOENCODER_KIND

    idle = ("clip", "fid") if kind == AUTOENCODER_KIND else ("lpips", "rfid")
    for name in idle:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: has nothing to judge in a {kind}; leave it out")


def _measure_autoencoder(package: "Package", args: argparse.Namespace, process: "Process") -> Measured:
    """Reconstructions of every picture, once, on all ranks."""
    import torch

    from pipeline.data.transforms import to_model
    from pipeline.evaluate.judge import ReconstructionJudge
    from pipeline.evaluate.protocol import stamp
    from pipeline.models.packaged import load_autoencoder

    autoencoder = load_autoencoder(package).to(process.device)
    autoencoder.take_in_tiles(args.tile)
    size = args.image_size or autoencoder.config.resolution
    if size % autoencoder.downsample_factor:
        raise UserError(
            f"--image-size {size}: take a multiple of {autoencoder.downsample_factor}, which the model needs"
        )
    judge = ReconstructionJudge(autoencoder.config.quantizer.num_codes, process.device, args.lpips, args.rfid)
    with torch.no_grad(), _open(args, size, process) as reader:
        served = _Served(reader, args.num)
        for batch in served:
            if batch.images is None:
                raise UserError(f"{args.data}: holds latents; an autoencoder is judged on pictures")
            images = batch.images.to(process.device)  # [B, 3, H, W]
            restored, codes = autoencoder.reconstruct(to_model(images))  # [B, 3, H, W], [B, h, w]
            judge.update(restored, images, codes)
    said = judge.protocol() | ({"tile": str(args.tile)} if args.tile else {})
    protocol = stamp(said, reader.digest, served.total(process.device), size)
    if process.is_main:
        _write_sheet(package.folder, judge.sheet())
    return judge.compute(), protocol


def _write_sheet(folder: Path, picture: "np.ndarray") -> None:
    from PIL import Image

    from pipeline.checkpoint.package import RECONSTRUCTIONS
    from pipeline.storage import writing

    with writing(folder / RECONSTRUCTIONS) as file:
        Image.fromarray(picture).save(file, format="png")


def _measure_unet(package: "Package", args: argparse.Namespace, process: "Process") -> Measured:
    """The loss on every sample, and pictures for the captions or the small pictures of the data."""
    from pipeline.evaluate.protocol import stamp
    from pipeline.generate import Generator
    from pipeline.stages.diffusion_evaluation import UNetMeter

    generator = Generator.load(package.folder, process.device)
    generator.autoencoder.take_in_tiles(args.tile)
    size = args.image_size or generator.sampling.image_size or generator.autoencoder.config.resolution
    meter = UNetMeter(generator, size, tuple(args.clip) if args.clip else None, args.fid)
    with _open(args, size, process) as reader:
        served = _Served(reader, args.num)
        meter.measure(served)
    said = meter.protocol() | {"weights": package.lineage.get("weights")}
    protocol = stamp(said, reader.digest, served.total(process.device), size)
    return meter.compute(), protocol


def _open(args: argparse.Namespace, image_size: int, process: "Process") -> "OrderedReader":
    """The data, each sample once over all ranks."""
    from pipeline.data.dataset import DataConfig
    from pipeline.data.loader import OrderedReader

    config = DataConfig(train=args.data, image_size=image_size)
    return OrderedReader(args.data, config, process.rank, process.world_size, batch_size=args.batch_size)


class _Served:
    """The batches of a pass over the first `num` samples, and how many samples came: masked and bad ones do not."""

    def __init__(self, reader: "OrderedReader", num: int | None) -> None:
        self._reader, self._num, self._count = reader, num, 0

    def __iter__(self) -> "Iterator[Batch]":
        everything = self._reader.manifest.num_samples
        for batch in self._reader.batches(last=everything if self._num is None else min(self._num, everything)):
            self._count += len(batch.sample_ids)
            yield batch

    def total(self, device: "torch.device") -> int:
        """Samples over all ranks; collective."""
        import torch

        from pipeline.distributed.process import all_reduce_sum

        return int(all_reduce_sum(torch.tensor(self._count, device=device)))


def _table(figures: dict[str, Any]) -> str:
    """The figures, a line each, under the model and the data that they belong to."""
    lines = [f"{name:<28}{value:.4f}" for name, value in sorted(figures["metrics"].items())]
    head = f"model {figures['package_digest'][:12]} on data {figures['data_digest'][:12]}"
    return "\n".join([f"{head}, {figures['protocol']['num_samples']} samples", *lines])
