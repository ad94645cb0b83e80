"""From a run to a model that stands alone: the averaged weights of its newest good generation, as one folder.

`resolve` turns whatever a user calls a model (registry reference, run folder, exported folder) into such a folder; the
commands with `--model` call it. Needs no torch.distributed and may run beside the training that it exports from.
"""

import difflib
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import yaml
from torch import Tensor

from pipeline.checkpoint.generation import MANIFEST, Generation
from pipeline.checkpoint.package import AUTOENCODER_KIND, UNET_KIND, WEIGHTS, load_package, save_package
from pipeline.checkpoint.posthoc import rebuilt_average
from pipeline.checkpoint.reader import GenerationReader, newest_verified
from pipeline.config import UserError, parse_config
from pipeline.redact import redact_text
from pipeline.run_folder import RunFolder
from pipeline.storage import sha256_of
from pipeline.tracking.journal import read_events
from pipeline.tracking.lineage import Lineage

KIND_OF_STAGE = {"autoencoder": AUTOENCODER_KIND, "diffusion": UNET_KIND}
PARTS_OF_STAGE = {"autoencoder": ("autoencoder", "ema"), "diffusion": ("unet", "unet_ema")}
"""The checkpoint parts that hold the weights and their average."""
AS_TRAINED = "as trained"
"""Weights that are no average."""


def resolve(ref: Path | str) -> Path:
    """The exported folder that `ref` means: models:/name@alias, models:/name/7, a run folder or an exported folder.

    Raises:
        UserError: there is no such model; names what is near.
        ServerError: a registry reference, and the tracking server does not answer.
    """
    if str(ref).startswith("models:/"):
        from pipeline.tracking.download import fetch
        from pipeline.tracking.registry import Registry

        registry = Registry()
        return fetch(registry, registry.find(str(ref)))
    path = Path(ref)
    if (path / WEIGHTS).is_file():
        return load_package(path).folder
    if (path / "checkpoints").is_dir():
        return export_run(path)
    raise UserError(f"{ref}: {_why_not(path)}")


def export_run(run_dir: Path | str, ema_width: float | None = None) -> Path:
    """Export the newest verified generation to RUN/export/gen-...; the same generation is exported once.

    Args:
        ema_width: rebuild the average of that relative width from the run's snapshots, instead of the stored one.

    Raises:
        UserError: not a run folder, no generation that is whole, or no averages to build that width from.
    """
    run = RunFolder(Path(run_dir))
    for path in (run.config, run.lineage):
        if not path.is_file():
            raise UserError(f"{run.path}: not a run folder, {path.name} is missing")
    generation = newest_verified(run.checkpoints)
    if generation is None:
        raise UserError(f"{run.path}: no checkpoint yet that is whole; train first")
    lineage = _lineage(run, generation)
    ending = "" if ema_width is None else f"-ema-{ema_width:g}"
    folder = run.path / "export" / f"{generation.path.name}{ending}"
    with _one_exporter(folder.parent):
        if folder.is_dir() and load_package(folder).lineage.get("checkpoint_digest") == lineage.checkpoint_digest:
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # a generation of the same number from before a fallback
        return _export(run, generation, lineage, folder, ema_width)


def _export(
    run: RunFolder, generation: Generation, lineage: Lineage, folder: Path, ema_width: float | None = None
) -> Path:
    kind = KIND_OF_STAGE[lineage.stage]
    stage = yaml.safe_load(run.config.read_text())["stage"]
    config = stage["model"] if kind == AUTOENCODER_KIND else stage
    tensors, weights = averaged_weights(generation, *PARTS_OF_STAGE[lineage.stage])
    if weights != AS_TRAINED:
        weights += f" with decay {stage['ema']['decay']:g}"
    if ema_width is not None:
        tensors |= rebuilt_average(run.checkpoints, generation, ema_width)
        weights = f"averaged over training with relative width {ema_width:g}"
    events = read_events(run.path)
    pictures = [run.path / e.body["path"] for e in events if e.kind == "picture" and e.body["name"] == "preview"]
    found = [path for path in pictures if path.is_file()]
    metrics = {name: value for e in events if e.kind == "metrics" for name, value in e.body["values"].items()}
    card = _card(kind, config, lineage, weights, tensors, metrics)
    record = lineage.model_dump(mode="json") | {"weights": weights}
    inner = run.autoencoder if kind == UNET_KIND else None
    return save_package(folder, kind, tensors, config, record, card, found[-1] if found else None, inner).folder


def averaged_weights(generation: Generation, part: str, average: str) -> tuple[dict[str, Tensor], str]:
    """Weights and buffers of `part` by state-dict name, and what they are: averaged, where `average` was stored."""
    reader = GenerationReader(generation)
    tensors = {**reader.tensors(part, "param"), **reader.tensors(part, "buffer")}
    if average not in generation.scalars:
        return tensors, AS_TRAINED
    return {**tensors, **reader.tensors(average, "ema")}, "averaged over training"


def _lineage(run: RunFolder, generation: Generation) -> Lineage:
    """What the run started from, and how far it had come; credentials in URLs are taken out."""
    tree: dict[str, Any] = json.loads(redact_text(run.lineage.read_text()))
    starts = [event for event in read_events(run.path) if event.kind == "started"]
    tree |= {
        "run_uid": starts[0].body["uid"] if starts else None,
        "samples_seen": generation.progress["samples_seen"],
        "generation": generation.number,
        "checkpoint_digest": sha256_of(generation.path / MANIFEST),
    }
    return parse_config(tree, Lineage, source=str(run.lineage))


def _card(
    kind: str,
    config: dict[str, Any],
    lineage: Lineage,
    weights: str,
    tensors: dict[str, Tensor],
    metrics: dict[str, float],
) -> str:
    """MODEL_CARD.md."""
    template = (Path(__file__).parent / "model_card.md.j2").read_text()
    return jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
        title=f"{kind} of {lineage.run}",
        kind=kind,
        factor=2 ** (len(config.get("channel_multipliers", ())) - 1),
        lineage=lineage,
        weights=weights,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        metrics={name: value for name, value in metrics.items() if name.startswith("validation")},
    )


@contextmanager
def _one_exporter(folder: Path) -> Iterator[None]:
    """Let one process at a time export a run: the ranks of a precomputation may all ask at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _why_not(path: Path) -> str:
    """What is wrong with a reference that is neither a package nor a run."""
    if path.is_dir():
        return "neither a run folder (no checkpoints/) nor an exported model (no model.safetensors)"
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "name a run folder, an exported folder or models:/NAME"
    return f"no such folder; {hint}"
