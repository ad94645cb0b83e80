"""`tessera evaluate` of an autoencoder, on one rank and two: the figures, the sheet, and what the stamp says."""

import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.checkpoint.package import AUTOENCODER_KIND, save_package
from pipeline.commands import evaluate
from pipeline.config import UserError
from pipeline.data import members
from pipeline.data.selection import Selection
from pipeline.data.transforms import to_model, to_uint8
from pipeline.evaluate.inception import inception
from pipeline.evaluate.reconstruction import psnr
from pipeline.models.autoencoder import Autoencoder
from pipeline.storage import sha256_of
from pipeline.torchvision_shim import declare_missing_operators
from tests.data.small_shards import picture, write_pictures
from tests.formula import formula_tensors
from tests.ranks import run_ranks
from tests.small_models import small_autoencoder

CONFIG = small_autoencoder(norm_groups=2)
NUM_PICTURES, LEFT_OUT = 9, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package, nine pictures of which one is masked, and the weights of the judges."""
    declare_missing_operators()
    from torchvision.models import vgg16

    folder = tmp_path_factory.mktemp("evaluate")
    model = Autoencoder(CONFIG, seed=1)
    save_package(folder / "model", AUTOENCODER_KIND, model.state_dict(), CONFIG.model_dump(mode="json"), {}, "")
    manifest = write_pictures(str(folder / "data"), [5, 4], size=(16, 16))
    keep = np.arange(NUM_PICTURES) != LEFT_OUT
    Selection(manifest.digest, NUM_PICTURES, members.pack(keep), {"test": 1}).save(str(folder / "data"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(vgg16().features.state_dict(prefix="features."), folder / "vgg.pth")
    torch.save(formula_tensors(inception().state_dict()), folder / "inception.pth")
    return folder


def arguments(place: Path, **options: Any) -> Namespace:
    usual = {
        "num": None,
        "image_size": None,
        "batch_size": 3,
        "out": None,
        "json": True,
        "lpips": None,
        "rfid": None,
        "tile": None,
        "clip": None,
        "fid": None,
    }
    return Namespace(model=str(place / "model"), data=str(place / "data"), **(usual | options))


def evaluated(place: Path, options: dict[str, Any]) -> None:
    evaluate.run(arguments(place, **options))


def test_figures_are_of_every_sample_once_on_any_number_of_ranks(place: Path) -> None:
    alone, shared = place / "alone.json", place / "shared.json"
    evaluated(place, {"out": alone, "lpips": place / "vgg.pth", "rfid": place / "inception.pth"})
    one = json.loads(alone.read_text())
    run_ranks(evaluated, 2, place, {"out": shared, "lpips": place / "vgg.pth", "batch_size": 5})
    two = json.loads(shared.read_text())
    assert one["protocol"]["num_samples"] == two["protocol"]["num_samples"] == NUM_PICTURES - 1
    assert set(one["metrics"]) == {"psnr", "ssim", "codebook_usage", "codebook_perplexity", "lpips", "rfid"}
    assert two["metrics"] == pytest.approx({name: one["metrics"][name] for name in two["metrics"]}, rel=1e-5, abs=1e-6)
    assert one["metrics"]["rfid"] > 0
    images = torch.stack([pixels(number) for number in range(NUM_PICTURES) if number != LEFT_OUT])  # [8, 3, 16, 16]
    with torch.no_grad():
        restored = to_uint8(Autoencoder(CONFIG, seed=1).eval()(to_model(images)).images)
    assert one["metrics"]["psnr"] == pytest.approx(psnr(restored, images).mean().item(), abs=1e-3)
    sheet = np.asarray(Image.open(place / "model" / "reconstructions.png"))
    assert sheet.shape == (32, 4 * 16, 3)  # what rank 0 had of eight pictures
    evaluated(place, {"num": 100})
    sheet = np.asarray(Image.open(place / "model" / "reconstructions.png"))
    assert sheet.shape == (32, 8 * 16, 3)
    assert np.array_equal(sheet[:16], torch.cat(list(images), dim=2).permute(1, 2, 0).numpy())


def test_the_stamp_names_the_data_and_the_weights_that_judged(place: Path) -> None:
    out = place / "stamped.json"
    evaluated(place, {"out": out, "lpips": place / "vgg.pth", "num": 2})
    protocol = json.loads(out.read_text())["protocol"]
    assert protocol["lpips_weights"] == sha256_of(place / "vgg.pth")
    assert "rfid_weights" not in protocol and "rfid" not in protocol
    assert protocol["num_samples"] == 2 and protocol["image_size"] == 16
    assert {"pixels", "crop", "psnr", "ssim", "data_digest", "versions"} <= set(protocol)


def test_sizes_that_the_model_cannot_halve_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="--image-size 17: take a multiple of 2"):
        evaluated(place, {"image_size": 17})
    with pytest.raises(UserError, match="tile 5: take a multiple of 2"):
        evaluated(place, {"tile": 5})


def test_judges_without_their_weights_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="none.pth: no such file.*or leave rFID out"):
        evaluated(place, {"rfid": place / "none.pth"})
    with pytest.raises(UserError, match="none.pth: no such file; put torchvision's VGG16 there"):
        evaluated(place, {"lpips": place / "none.pth"})


def pixels(number: int) -> torch.Tensor:
    image = np.asarray(Image.open(io.BytesIO(picture(number, (16, 16)))))
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def test_a_judge_without_work_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match="--clip: has nothing to judge in a vq-autoencoder"):
        evaluated(place, {"clip": ["ViT-B-32", "none"]})
    with pytest.raises(UserError, match="--fid: has nothing to judge"):
        evaluated(place, {"fid": place / "inception.pth"})
