"""The main job from end to end, in its small recipe: every public command, its artifacts, killed once, run again."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from launch.demo import PROGRAMS, PROMPTS, RECIPES, plan_steps
from pipeline.data.shapes import parse_caption
from tests.runs import ROOT, run, start

OUT = Path("runs") / "small"
WORDS = ("launch.demo", "--recipe", "debug", "--out", str(OUT))


pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the small demo was killed during the first training, and then finished by the same command."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "configs", folder / "configs")
    process = start(folder, *WORDS)
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        if "samples" in line and "steps/s" in line:
            break
    else:
        pytest.fail("".join(seen))
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    output = run(folder, *WORDS)
    assert "$ tessera-data draw" not in output, "what was finished before the kill is not done again"
    assert "$ tessera train" in output
    return folder


def test_the_summary_says_what_was_reached(place: Path) -> None:
    summary = json.loads((place / OUT / "summary.json").read_text())
    assert set(summary["caption_accuracy_by_attribute"]) == {"size", "colour", "shape", "place", "background"}
    mean = sum(summary["caption_accuracy_by_attribute"].values()) / 5
    assert summary["caption_accuracy"] == pytest.approx(mean)
    assert 0 <= summary["caption_accuracy_all"] <= summary["caption_accuracy"] <= 1
    assert 0 < summary["codebook_usage"] <= 1 and 5 < summary["psnr_db"] < 100
    assert summary["seconds"] > 0 and {"torch", "deepspeed", "mlflow", "python"} <= set(summary["versions"])


def test_pictures_and_pages_are_there(place: Path) -> None:
    with Image.open(place / OUT / "grid.png") as grid:
        assert grid.width >= 3 * 128 and grid.height >= 3 * 128
    for page in ("data.html", "autoencoder/report.html", "unet/report.html"):
        text = (place / OUT / page).read_text()
        assert "<svg" in text or "<img" in text
        assert "http://" not in text.replace("http://www.w3.org", ""), "a page loads nothing from elsewhere"


def test_run_again_finds_everything_done(place: Path) -> None:
    before = (place / OUT / "summary.json").read_text()
    output = run(place, *WORDS)
    assert "$ tessera" not in output
    assert (place / OUT / "summary.json").read_text() == before


def test_the_champions_are_registered_with_their_lineage(place: Path) -> None:
    shown = json.loads(run(place, "pipeline", "registry", "show", "latent-unet@champion", "--json"))
    text = json.dumps(shown)
    assert "vq-autoencoder" in text and "autoencoder_digest" in text


def test_another_autoencoder_is_refused(place: Path) -> None:
    """An autoencoder that differs in one weight is another one: for sampling, and for training on its latents."""
    from safetensors.torch import load_file, save_file

    export = next((place / OUT / "autoencoder" / "export").glob("gen-*"))
    other = place / "other"
    shutil.copytree(export, other)
    tensors = load_file(other / "model.safetensors")
    tensors["decoder.conv_out.bias"] += 1e-3
    save_file(tensors, other / "model.safetensors")
    words = ["--model", str(OUT / "unet"), "a star", "--out", "x.png", "--autoencoder", str(other)]
    assert "was trained with" in run(place, "pipeline", "sample", *words, code=2)
    words = ["configs/diffusion/debug.yaml", "run=runs/other", f"data.train={OUT}/latents/train"]
    words += ["data.validation=null", f"autoencoder={other}"]
    assert "latents of autoencoder" in run(place, "pipeline", "train", *words, code=2)


@pytest.mark.parametrize("name", RECIPES)
def test_the_demo_uses_the_public_commands_only(name: str) -> None:
    for line in plan_steps(Path("runs/x"), name).values():
        assert line.split()[0] in PROGRAMS
    assert all(parse_caption(prompt) for prompt in PROMPTS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_demo_reaches_its_figures(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    process = start(tmp_path, "launch.demo")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert summary["caption_accuracy"] >= 0.90
    assert summary["psnr_db"] >= 26
    assert summary["codebook_usage"] >= 0.5
