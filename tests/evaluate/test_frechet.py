"""The Frechet distance against its closed form and over ranks; Inception's features against torch-fidelity's."""

from pathlib import Path

import pytest
import torch

from pipeline.config import UserError
from pipeline.distributed.process import start
from pipeline.evaluate.frechet import FrechetMeter, frechet_distance
from pipeline.evaluate.inception import InceptionFeatures, inception, stretched
from pipeline.torchvision_shim import declare_missing_operators
from tests.formula import formula, formula_tensors
from tests.ranks import run_ranks

GOLDEN = {0: 0.067079, 300: 2.24108, 500: 3.943343, 700: 1.802603, 1100: 1.664046, 1500: 0.0, 2047: 5.182119}
"""Some features of the picture below, by torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with `formula_tensors`."""


def gaussian(number: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    factor = formula((width, width), number).double()
    return formula((width,), number + 10).double(), factor @ factor.t()


def test_of_gaussians_that_share_their_axes_it_is_the_sum_over_the_axes() -> None:
    a, b = torch.tensor([4.0, 9.0]).double(), torch.tensor([1.0, 16.0]).double()
    turn, _ = torch.linalg.qr(formula((2, 2), 3).double())
    distance = frechet_distance(
        torch.zeros(2).double(), turn @ a.diag() @ turn.t(), torch.ones(2).double(), turn @ b.diag() @ turn.t()
    )
    assert distance == pytest.approx(2 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_equals_torchmetrics() -> None:
    declare_missing_operators()
    from torchmetrics.image.fid import _compute_fid

    (mean_a, a), (mean_b, b) = gaussian(0), gaussian(1)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(_compute_fid(mean_a, a, mean_b, b).item())
    assert frechet_distance(mean_a, a, mean_a, a) == pytest.approx(0, abs=1e-9)


def test_singular_covariances_have_a_distance() -> None:
    line = torch.tensor([1.0, 0.0, 0.0]).double()
    a, b = line.outer(line), 4 * line.outer(line)
    zero = torch.zeros(3).double()
    assert frechet_distance(zero, a, zero, b) == pytest.approx(1.0)


def measured() -> dict[str, float]:
    process = start()
    restored, images = formula((9, 5), 1), formula((9, 5), 2)
    meter = FrechetMeter(5, torch.device("cpu"), "rfid")
    mine = slice(process.rank, None, process.world_size)
    for a, b in zip(restored[mine].split(2), images[mine].split(2), strict=True):
        meter.update(a, b)
    return meter.compute()


def test_ranks_and_batches_do_not_matter() -> None:
    restored, images = formula((9, 5), 1).double(), formula((9, 5), 2).double()
    expected = frechet_distance(restored.mean(0), restored.t().cov(), images.mean(0), images.t().cov())
    assert measured()["rfid"] == pytest.approx(expected)
    assert [values["rfid"] for values in run_ranks(measured, 2)] == pytest.approx([expected] * 2)


def test_one_picture_has_no_covariance() -> None:
    meter = FrechetMeter(5, torch.device("cpu"), "rfid")
    meter.update(torch.ones(1, 5), torch.ones(1, 5))
    assert meter.compute() == {}


def test_rows_are_read_where_tensorflow_1_reads_them() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert stretched(ramp, 8)[0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert torch.equal(stretched(ramp.mT, 8)[0, 0, :, 0], stretched(ramp, 8)[0, 0, 0])


def weights(folder: Path) -> Path:
    file = folder / "inception.pth"
    torch.save(formula_tensors(inception().state_dict()) | {"fc.bias": torch.zeros(1008)}, file)
    return file


def test_features_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    picture = (formula((1, 3, 40, 48)) * 128 + 128).to(torch.uint8)
    features = InceptionFeatures(weights(tmp_path))(picture)[0]
    assert features.shape == (2048,)
    assert {place: features[place].item() for place in GOLDEN} == pytest.approx(GOLDEN, rel=1e-3)


def test_missing_and_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; put pt_inception-2015.* there, or leave rFID out"):
        InceptionFeatures(tmp_path / "none.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the network of pt_inception-2015"):
        InceptionFeatures(tmp_path / "other.pth")
