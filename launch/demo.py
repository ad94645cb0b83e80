"""The main job from end to end with the public commands only: what `make demo` runs.

Each step is one command line. A finished step leaves a stamp with its command and its seconds, so a second run
skips it, and an interrupted one goes on where it stopped (inside a step, the command itself resumes).
"""

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import storage

PROMPTS = (
    "a large red circle at the center on a white background",
    "a small blue star at the left on a yellow background",
    "a large green triangle at the bottom on a black background",
    "a small white square at the top on a purple background",
    "a large orange star at the right on a blue background",
    "a small black circle at the bottom on a green background",
    "a large purple square at the left on a orange background",
    "a small yellow triangle at the center on a red background",
)
PACKAGES = ("torch", "deepspeed", "webdataset", "accelerate", "open_clip_torch", "s3fs", "mlflow", "einops")
PROGRAMS = {"tessera": "pipeline", "tessera-data": "data_tools"}


@dataclass(frozen=True)
class Recipe:
    """The size of a demo: `shapes` is the real one, `debug` only shows in a minute that every room works."""

    num_pictures: int
    num_held_out: int
    num_captions: int
    gates: str


RECIPES = {
    "shapes": Recipe(num_pictures=10_000, num_held_out=500, num_captions=200, gates="configs/promote.yaml"),
    "debug": Recipe(num_pictures=300, num_held_out=40, num_captions=8, gates="configs/promote-debug.yaml"),
}


def plan_steps(out: Path, name: str) -> dict[str, str]:
    """The command line of each step, in order, for the demo `name` in the folder `out`."""
    recipe = RECIPES[name]
    pictures, shards, latents = out / "pictures", out / "shards", out / "latents"
    first, second = out / "autoencoder", out / "unet"
    draw, champion = "tessera-data draw shapes --size 32", "models:/vq-autoencoder@champion"
    steps = {
        "draw": f"{draw} --out {pictures}/train --num {recipe.num_pictures} --seed 1 --split train",
        "draw-held-out": f"{draw} --out {pictures}/held-out --num {recipe.num_held_out} --seed 2 --split held-out",
    }
    for part in ("train", "held-out"):
        steps[f"shard-{part}"] = f"tessera-data shard {pictures}/{part} --out {shards}/{part}"
        steps[f"validate-{part}"] = f"tessera-data validate {shards}/{part}"
    steps |= {
        "report": f"tessera-data report {shards}/train --out {out}/data.html",
        "train-autoencoder": f"tessera train configs/autoencoder/{name}.yaml run={first}"
        f" data.train={shards}/train data.validation={shards}/held-out",
        "evaluate-autoencoder": f"tessera evaluate --model {first} --data {shards}/held-out"
        f" --out {out}/autoencoder.json",
        "register-autoencoder": f"tessera registry register {first}",
        "promote-autoencoder": f"tessera registry promote vq-autoencoder --gates {recipe.gates}",
    }
    for part in ("train", "held-out"):
        steps[f"precompute-{part}"] = (
            f"tessera-data precompute --model {champion} --data {shards}/{part} --out {latents}/{part}"
        )
    return steps | {
        "train-unet": f"tessera train configs/diffusion/{name}.yaml run={second}"
        f" data.train={latents}/train data.validation={latents}/held-out",
        "evaluate-unet": f"tessera evaluate --model {second} --data {latents}/held-out --num {recipe.num_captions}"
        f" --out {out}/unet.json",
        "register-unet": f"tessera registry register {second}",
        "promote-unet": f"tessera registry promote latent-unet --gates {recipe.gates}",
        "sample": f"tessera sample --model models:/latent-unet@champion {shlex.join(PROMPTS)} --out {out}/grid.png",
    }


def run_step(out: Path, name: str, line: str) -> float:
    """Run one command line unless its stamp is there; returns the seconds that it took when it ran.

    Raises:
        SystemExit: the command failed; its exit code is handed on.
    """
    stamp = out / ".steps" / f"{name}.json"
    if stamp.is_file() and storage.read_json(stamp)["command"] == line:
        return float(storage.read_json(stamp)["seconds"])
    print(f"\n$ {line}", flush=True)
    program, *words = shlex.split(line)
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", PROGRAMS[program], *words])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal told the command as well: let it save what it has
        process.wait()
        raise
    if code:
        print(f"demo: the step {name} ended with exit code {code}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(code)
    seconds = time.monotonic() - start
    storage.write_json(stamp, {"command": line, "seconds": seconds})
    return seconds


def summarise(out: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """The figures of the demo, from the evaluations of the two models; written to summary.json."""
    first, second = (storage.read_json(out / f"{stage}.json")["metrics"] for stage in ("autoencoder", "unet"))
    prefix = "caption_accuracy_"
    attributes = {name.removeprefix(prefix): value for name, value in second.items() if name.startswith(prefix)}
    summary = {
        "caption_accuracy": second["caption_accuracy"],
        "caption_accuracy_all": attributes.pop("all"),
        "caption_accuracy_by_attribute": attributes,
        "psnr_db": first["psnr"],
        "codebook_usage": first["codebook_usage"],
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_step": {name: round(value, 1) for name, value in seconds.items()},
        "versions": {package: version(package) for package in PACKAGES} | {"python": sys.version.split()[0]},
    }
    storage.write_json(out / "summary.json", summary)
    return summary


def main() -> int:
    """Run what is not done yet, then print where everything is."""
    parser = argparse.ArgumentParser("python -m launch.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo (default: runs/demo)")
    parser.add_argument("--recipe", choices=RECIPES, default="shapes", help="shapes: the real one; debug: a minute")
    args = parser.parse_args()
    try:
        seconds = {name: run_step(args.out, name, line) for name, line in plan_steps(args.out, args.recipe).items()}
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print_summary(args.out, summarise(args.out, seconds))
    return 0


def print_summary(out: Path, summary: dict[str, Any]) -> None:
    """What was reached, and where to look."""
    accuracy = ", ".join(f"{name} {value:.3f}" for name, value in summary["caption_accuracy_by_attribute"].items())
    print(f"""
The pictures of the champion  {out}/grid.png
Report on the data            {out}/data.html
Reports on the two runs       {out}/autoencoder/report.html  {out}/unet/report.html
Figures                       {out}/summary.json

Autoencoder, held-out         PSNR {summary["psnr_db"]:.2f} dB, {summary["codebook_usage"]:.0%} of the codebook in use
Held-out captions             attributes right {summary["caption_accuracy"]:.3f} ({accuracy})
                              all five right {summary["caption_accuracy_all"]:.3f}
Time of all steps             {summary["seconds"]:.0f} s

Look at the runs and models   .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db""")


if __name__ == "__main__":
    sys.exit(main())
