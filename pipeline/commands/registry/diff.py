"""`tessera registry diff A B`: what two versions differ in (config, data, code, figures), and their pictures."""

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.checkpoint.package import PREVIEW, Package, load_package
from pipeline.command_line import EXIT_DONE
from pipeline.commands.registry.tables import console, print_table
from pipeline.config import UserError, config_differences
from pipeline.tracking.download import fetch
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import Version


def diff_(registry: Registry, args: argparse.Namespace) -> int:
    """The differences as tables or JSON; the two previews side by side in `--out`."""
    versions = [registry.find(args.first), registry.find(args.second)]
    packages = [load_package(fetch(registry, version)) for version in versions]
    found = differences(versions, packages)
    if args.out:
        _save_pictures(packages, versions, args.out)
    if args.json:
        print(json.dumps(found, indent=2))
        return EXIT_DONE
    for part in ("config", "lineage"):
        lines = found[part] or ["no difference"]
        console().print("\n".join([f"[bold]{part}[/bold]", *(f"  {line}" for line in lines), ""]), markup=True)
    rows = [
        [name, _number(a), _number(b), _number(b - a) if None not in (a, b) else ""] for name, a, b in found["metrics"]
    ]
    print_table(["figure", *(version.ref for version in versions), "difference"], rows)
    if found["protocol"]:
        print("measured under different protocols: " + "; ".join(found["protocol"]))
    return EXIT_DONE


def differences(versions: list[Version], packages: list[Package]) -> dict[str, Any]:
    """`config`, `lineage`, `protocol`: lines `name: a -> b`; `metrics`: [name, a, b], None where not measured."""
    first, second = (version.evaluation or {} for version in versions)
    a, b = first.get("metrics", {}), second.get("metrics", {})
    before, after = packages
    stamps = [{"protocol": evaluation.get("protocol") or {}} for evaluation in (first, second)]
    return {
        "config": config_differences(before.config, after.config),
        "lineage": config_differences(before.lineage, after.lineage),
        "protocol": config_differences(stamps[0], stamps[1]) if first and second else [],
        "metrics": [[name, a.get(name), b.get(name)] for name in sorted({*a, *b})],
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _save_pictures(packages: list[Package], versions: list[Version], out: Path) -> None:
    """Both preview grids in one picture, each under its version's name."""
    import numpy as np
    from PIL import Image

    from pipeline.evaluate.grid import captioned_grid
    from pipeline.storage import writing

    paths = [package.folder / PREVIEW for package in packages]
    for path, version in zip(paths, versions, strict=True):
        if not path.is_file():
            raise UserError(f"{version.ref}: has no preview picture, so there is nothing to put side by side")
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width, height = (max(sizes) for sizes in zip(*(picture.size for picture in pictures), strict=True))
    frames = [Image.new("RGB", (width, height), "white") for _ in pictures]
    for frame, picture in zip(frames, pictures, strict=True):
        frame.paste(picture)
    sheet = captioned_grid(np.stack([np.array(frame) for frame in frames]), [version.ref for version in versions])
    with writing(out) as file:
        Image.fromarray(sheet).save(file, format="png")
