"""Draw pictures for prompts with a trained model: from noise, from a given picture, inside a mask or around a picture.

Under torchrun the ranks share the pictures, the same bytes as one of them would draw.

Example:
    tessera sample --model models:/latent-unet@champion "a red circle" "a blue star" --out grid.png
    tessera sample --model runs/demo/unet "a red star" --init-image photo.png --strength 0.6 --num 4 --out pictures/
    tessera sample --model runs/upscale/unet "a red star" --upscale small.png --out large/
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import EXIT_DONE
from pipeline.config import UserError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.diffusion.sampling import SamplingConfig


TOGETHER = 8
"""Pictures that are drawn as one batch on one rank. Fixed: kernels round otherwise for another size of the batch."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tessera sample`."""
    parser.add_argument("prompts", nargs="+", help="what to draw, with seeds SEED, SEED + 1, ...")
    own = "(default: what the model was made for)"
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/7, run or exported folder")
    parser.add_argument("--out", required=True, type=Path, help="a .png for a captioned grid, or a folder")
    # not --num, of which this is an abbreviation: torchrun would take that for an option of its own
    parser.add_argument(
        "--num-pictures", dest="num", type=int, default=1, metavar="N", help="of each prompt (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture (default: 0)")
    parser.add_argument("--negative", default="", help="a prompt to lead away from")
    parser.add_argument("--guidance", type=float, help=f"guidance scale; 1 is none {own}")
    parser.add_argument("--sampler", help=f"{own}: ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, unipc")
    parser.add_argument("--steps", type=int, help=f"sampling steps {own}")
    parser.add_argument("--size", type=int, help="side in pixels (default: that of the training pictures)")
    parser.add_argument("--tile", type=int, metavar="S", help="decode larger pictures in tiles of S pixels")
    parser.add_argument("--init-image", type=Path, help="start from this picture")
    parser.add_argument("--strength", type=float, default=1.0, help="how far to leave --init-image, in (0, 1]")
    parser.add_argument("--mask", type=Path, help="repaint --init-image only where this picture is white")
    parser.add_argument("--outpaint", type=int, metavar="PIXELS", help="continue --init-image by so much on each side")
    parser.add_argument("--upscale", type=Path, metavar="PICTURE", help="enlarge it, with a model trained to")
    parser.add_argument("--autoencoder", help="decode with this first stage; refused if the model did not learn on it")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")


def run(args: argparse.Namespace) -> int:
    """Load, sample, save."""
    import numpy as np

    from pipeline.distributed import process as processes
    from pipeline.export import resolve
    from pipeline.generate import Generator

    _check(args)
    prompts = [prompt for prompt in args.prompts for _ in range(args.num)]
    process = processes.start()
    first_stage = processes.on_main(process, lambda: resolve(args.autoencoder)) if args.autoencoder else None
    model = processes.on_main(process, lambda: resolve(args.model))
    generator = Generator.load(model, process.device, first_stage, args.precision)
    generator.autoencoder.take_in_tiles(args.tile)
    init_image, mask = _given(args)
    batches = [slice(begin, begin + TOGETHER) for begin in range(0, len(prompts), TOGETHER)]
    seeds = range(args.seed, args.seed + len(prompts))
    low_res, sampling = _read_picture(args.upscale, "RGB"), _sampling(args, generator.sampling)

    def draw() -> "list[np.ndarray]":
        given = (sampling, args.negative, init_image, args.strength, mask, low_res, args.size, TOGETHER)
        mine = batches[process.rank :: process.world_size]
        return [generator.sample(prompts[rows], seeds[rows], *given) for rows in mine]

    parts = processes.on_every_rank(draw)  # by rank, then by turn
    if process.is_main:
        turns = (divmod(i, process.world_size) for i in range(len(batches)))
        pictures = np.concatenate([parts[rank][turn] for turn, rank in turns])
        _save(pictures, prompts, args.out)
        print(f"{args.out}: {len(pictures)} pictures")
    processes.finish()
    return EXIT_DONE


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if args.init_image is None and (args.mask or args.outpaint or args.strength != 1.0):
        raise UserError("--mask, --outpaint and --strength need a picture to start from: give --init-image")
    if args.mask and args.outpaint:
        raise UserError("--mask and --outpaint: one of them says what is to be painted")
    for name, value in (("num", args.num), ("outpaint", args.outpaint), ("size", args.size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give at least 1")


def _given(args: argparse.Namespace) -> "tuple[np.ndarray | None, np.ndarray | None]":
    """The picture to start from and the mask of what to repaint."""
    from pipeline.models.canvas import outpainted

    image = _read_picture(args.init_image, "RGB")
    return outpainted(image, args.outpaint) if image is not None and args.outpaint else (image, _read_mask(args.mask))


def _sampling(args: argparse.Namespace, default: "SamplingConfig") -> "SamplingConfig":
    """The model's own settings with those of the command line over them."""
    from pipeline.config import parse_config

    given = {"guidance_scale": args.guidance, "sampler": args.sampler, "num_steps": args.steps}
    changed = {name: value for name, value in given.items() if value is not None}
    return parse_config({**default.model_dump(), **changed}, type(default), source="tessera sample")


def _read_picture(path: Path | None, mode: str) -> "np.ndarray | None":
    """uint8 [H, W, 3] (RGB) or [H, W] (L) of a picture file."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if path is None:
        return None
    try:
        return np.array(Image.open(path).convert(mode))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from None


def _read_mask(path: Path | None) -> "np.ndarray | None":
    """bool [H, W]: True where the picture is nearer to white."""
    mask = _read_picture(path, "L")
    return None if mask is None else mask >= 128


def _save(pictures: "np.ndarray", prompts: list[str], out: Path) -> None:
    """One captioned grid for a .png, one file for each picture for a folder."""
    from PIL import Image

    from pipeline.evaluate.grid import captioned_grid
    from pipeline.storage import writing

    if out.suffix == ".png":
        sheets = {out: captioned_grid(pictures, prompts)}
    else:
        names = [f"{i:03d}-{re.sub('[^a-z0-9]+', '-', prompt.lower())[:60]}.png" for i, prompt in enumerate(prompts)]
        sheets = {out / name: picture for name, picture in zip(names, pictures, strict=True)}
    for path, sheet in sheets.items():
        with writing(path) as file:
            Image.fromarray(sheet).save(file, format="png")
