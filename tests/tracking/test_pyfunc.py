"""A promoted model loads as `mlflow.pyfunc` with nothing but what it declares, and draws what the commands draw.

So does its diffusers export: one prompt, one seed, one picture, whoever draws it.
"""

import io
import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from pipeline.checkpoint.package import AUTOENCODER_KIND, UNET_KIND, load_package, save_package
from pipeline.config import UserError
from pipeline.data.transforms import to_model, to_uint8
from pipeline.generate import Generator
from pipeline.models.latent_diffusion import build_latent_diffusion
from pipeline.models.packaged import load_autoencoder
from pipeline.randomness import Draws, Purpose
from pipeline.torchvision_shim import declare_missing_operators
from pipeline.tracking.download import fetch
from pipeline.tracking.promotion import promote
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import Version
from tests.runs import run
from tests.test_generate import AUTOENCODER, CONFIG, autoencoder
from tests.tracking.packages import FREE, LINEAGE, evaluate, tessera

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "models:/latent-unet@champion"
PROMPTS, SEEDS = ["a red circle", "a blue star", "a red circle"], [3, 3, 4]
PREDICT = """
import json, sys
import mlflow, pandas
uri, ref, folder = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(ref)
table = pandas.DataFrame({"prompt": ["a red circle", "a blue star", "a red circle"], "seed": [3, 3, 4]})
for i, png in enumerate(model.predict(table, {"num_steps": 3})["png"]):
    open(f"{folder}/{i}.png", "wb").write(png)
example = model.predict(model.input_example)
import pipeline
names = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"code": pipeline.__file__, "modules": names, "example": len(example["png"])}))
"""


@pytest.fixture
def unet(registry: Registry, tmp_path: Path) -> Version:
    """A small UNet whose weights are not the zeros of a start: registered, judged, and the champion."""
    first, picture = autoencoder(), np.zeros((2, 2, 3), dtype=np.uint8)
    document = AUTOENCODER.model_dump(mode="json")
    save_package(tmp_path / "first", AUTOENCODER_KIND, first.state_dict(), document, LINEAGE, "", picture)
    model, _ = build_latent_diffusion(CONFIG, seed=0)
    tensors = {name: tensor + 0.02 for name, tensor in model.state_dict().items()}
    config, lineage = CONFIG.model_dump(mode="json"), LINEAGE | {"stage": "diffusion"}
    save_package(tmp_path / "m", UNET_KIND, tensors, config, lineage, "", picture, tmp_path / "first")
    evaluate(tmp_path / "m", psnr=21.0)
    register(registry, tmp_path / "first")
    version = register(registry, tmp_path / "m")
    assert promote(registry, version, FREE).passed
    return registry.find(CHAMPION)


def closure(requirements: list[str]) -> set[str]:
    """The distributions that pip would install for these lines, of those that are installed here."""
    waiting, found = [Requirement(line) for line in requirements], set()
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name not in found:
            found.add(name)
            assert requirement.specifier.contains(metadata.version(name), prereleases=True) or "torch" in name
            waiting += [Requirement(line) for line in metadata.requires(name) or []]
    return found


def environment_of(requirements: list[str], folder: Path) -> Path:
    """The interpreter of a new environment that holds exactly what `requirements` ask for, linked from this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for name in closure(requirements):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if top != ".." and source.exists() and not (target / top).exists():
                (target / top).symlink_to(source)
    return folder / "bin" / "python"


def pixels(path: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(path))


def check_pictures(python: Path, version: Version, uri: str, folder: Path) -> None:
    """In the environment of `python`, which lacks this checkout, the champion draws what the generator draws here."""
    (folder / "elsewhere").mkdir()
    command = [str(python), "-c", PREDICT, uri, CHAMPION, str(folder)]
    clean = {"HOME": str(folder), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder / "elsewhere", env=clean, stdout=subprocess.PIPE, text=True, timeout=280, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["example"] == 1 and not answer["code"].startswith(str(Path(__file__).parents[2]))
    assert not {"deepspeed", "accelerate", "hypothesis", "s3fs"} & set(answer["modules"])
    generator = Generator.load(fetch(Registry(), version))
    expected = generator.sample(PROMPTS, SEEDS, generator.sampling.model_copy(update={"num_steps": 3}))
    assert len(np.unique(expected.reshape(3, -1), axis=0)) == 3
    for i, picture in enumerate(expected):
        np.testing.assert_array_equal(pixels(folder / f"{i}.png"), picture)


def test_an_environment_with_nothing_but_what_is_declared(
    unet: Version, client: "MlflowClient", tmp_path: Path
) -> None:
    requirements = (fetch(Registry(), unet) / "requirements.txt").read_text().split()
    python = environment_of(requirements, tmp_path / "clean")
    check_pictures(python, unet, client.tracking_uri, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_fresh_environment_filled_by_pip(unet: Version, client: "MlflowClient", tmp_path: Path) -> None:
    """The real thing: what a user does on another machine. Needs a package index, and skips without one."""
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(tmp_path / "probe"),
        "einops",
    ]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no package index in reach")
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    requirements = fetch(Registry(), unet) / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
    check_pictures(python, unet, client.tracking_uri, tmp_path)


def test_one_seed_is_one_picture(unet: Version, client: "MlflowClient", tmp_path: Path) -> None:
    """`tessera sample` and pyfunc agree to the bit; diffusers, with our noise for its latents, to one grey level."""
    import mlflow

    declare_missing_operators()
    from diffusers import DiffusionPipeline

    words = ("--model", CHAMPION, "--sampler", "ddim", "--steps", "5", "--guidance", "2.0", "--seed", "3")
    run(tmp_path, "pipeline", "sample", *PROMPTS[:2], *words, "--out", "pictures")
    drawn = np.stack([pixels(path) for path in sorted((tmp_path / "pictures").iterdir())])  # [B, H, W, 3]

    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model(CHAMPION)
    settings = {"sampler": "ddim", "num_steps": 5, "guidance_scale": 2.0}
    table = model.predict(pandas.DataFrame({"prompt": PROMPTS[:2], "seed": [3, 4]}), settings)
    np.testing.assert_array_equal(drawn, [pixels(io.BytesIO(png)) for png in table["png"]])

    assert tessera("export", CHAMPION, "--out", "theirs", "--format", "diffusers") == 0
    pipe = DiffusionPipeline.from_pretrained("theirs", trust_remote_code=True)
    noise = torch.cat([Draws(seed).normal(Purpose.INITIAL_NOISE, [0], [0], (4, 8, 8)) for seed in (3, 4)])
    theirs = pipe(PROMPTS[:2], latents=noise, num_inference_steps=5, guidance_scale=2.0).images
    distance = np.abs(np.stack([np.asarray(picture) for picture in theirs]).astype(int) - drawn)
    assert distance.max() <= 1 and (distance > 0).mean() < 0.01
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 1  # another picture is not as near


def test_an_autoencoder_restores_pictures(unet: Version, client: "MlflowClient", tmp_path: Path) -> None:
    import mlflow

    version = Registry().find("vq-autoencoder")
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model(version.ref)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    (png,) = model.predict(pandas.DataFrame({"png": [file.getvalue()]}))["png"]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    first = load_autoencoder(load_package(fetch(Registry(), version)))
    expected = to_uint8(first(to_model(image)).images)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(pixels(io.BytesIO(png)), expected.numpy())
    (ramp,) = model.predict(model.input_example)["png"]
    assert pixels(io.BytesIO(ramp)).shape == (32, 32, 3)


def test_wrong_use_is_one_line(unet: Version, client: "MlflowClient") -> None:
    import mlflow

    mlflow.set_tracking_uri(client.tracking_uri)
    model, table = mlflow.pyfunc.load_model(unet.ref), pandas.DataFrame({"prompt": ["a red circle"]})
    with pytest.raises(UserError, match="num_steps"):
        model.predict(table, {"num_steps": 0})
    with pytest.raises(UserError, match="sampler"):
        model.predict(table, {"sampler": "dpm"})
    with pytest.raises(UserError, match=r"give a pandas.DataFrame"):
        model.predict({"prompt": PROMPTS})
