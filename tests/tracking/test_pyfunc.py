"""A registered model loads as `mlflow.pyfunc` with nothing but what it declares, and draws what the commands draw."""

import io
import json
import os
import subprocess
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
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import Version
from tests.runs import run
from tests.test_generate import AUTOENCODER, CONFIG, autoencoder

if TYPE_CHECKING:
    from mlflow import MlflowClient

LINEAGE = {"run": "toy", "stage": "diffusion", "data_url": "x", "data_digest": "d", "config_digest": "c"}
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
def unet(client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """A small UNet, registered, whose weights are not the zeros of a start."""
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    first = autoencoder()
    document = AUTOENCODER.model_dump(mode="json")
    save_package(tmp_path / "first", AUTOENCODER_KIND, first.state_dict(), document, LINEAGE, "")
    model, _ = build_latent_diffusion(CONFIG, seed=0)
    tensors = {name: tensor + 0.02 for name, tensor in model.state_dict().items()}
    config = CONFIG.model_dump(mode="json")
    save_package(tmp_path / "m", UNET_KIND, tensors, config, LINEAGE, "", None, tmp_path / "first")
    return Registry().register(tmp_path / "m")


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


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_an_environment_with_nothing_but_what_is_declared(
    unet: Version, client: "MlflowClient", tmp_path: Path
) -> None:
    folder = Registry().fetch(unet)
    requirements = (folder / "requirements.txt").read_text().split()
    python = environment_of(requirements, tmp_path / "clean")
    (tmp_path / "elsewhere").mkdir()
    command = [str(python), "-c", PREDICT, client.tracking_uri, unet.ref, str(tmp_path)]
    clean = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=clean, stdout=subprocess.PIPE, text=True, timeout=280, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["example"] == 1 and not answer["code"].startswith(str(Path(__file__).parents[2]))
    assert not {"deepspeed", "accelerate", "hypothesis", "s3fs"} & set(answer["modules"])
    generator = Generator.load(folder)
    expected = generator.sample(PROMPTS, SEEDS, generator.sampling.model_copy(update={"num_steps": 3}))
    assert len(np.unique(expected.reshape(3, -1), axis=0)) == 3
    for i, picture in enumerate(expected):
        np.testing.assert_array_equal(pixels(tmp_path / f"{i}.png"), picture)


def test_the_command_draws_the_same(unet: Version, client: "MlflowClient", tmp_path: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/latent-unet@candidate")
    pictures = model.predict(pandas.DataFrame({"prompt": PROMPTS[:2]}), {"guidance_scale": 2.0})["png"]
    words = ("--model", "models:/latent-unet@candidate", "--guidance", "2.0", "--out", "pictures")
    run(tmp_path, "pipeline", "sample", *PROMPTS[:2], *words)
    for drawn, png in zip(sorted((tmp_path / "pictures").iterdir()), pictures, strict=True):
        np.testing.assert_array_equal(pixels(drawn), np.asarray(Image.open(io.BytesIO(png))))


def test_an_autoencoder_restores_pictures(unet: Version, client: "MlflowClient", tmp_path: Path) -> None:
    import mlflow

    version = Registry().register(tmp_path / "first")
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model(version.ref)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    (png,) = model.predict(pandas.DataFrame({"png": [file.getvalue()]}))["png"]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    first = load_autoencoder(load_package(Registry().fetch(version)))
    expected = to_uint8(first(to_model(image)).images)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected.numpy())


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
