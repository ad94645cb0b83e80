"""Gates: each one can refuse, none is skipped, and a champion only counts under the same protocol."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.package import Package
from pipeline.config import UserError, parse_config
from pipeline.data.shapes import draw_shape
from pipeline.evaluate.captions import CaptionMeter
from pipeline.evaluate.reconstruction import CodebookMeter, PictureMeter
from pipeline.tracking.gates import BoundConfig, Facts, GateConfig, judge, load_gates
from tests.tracking.packages import package

GATES = GateConfig(metrics={"psnr": BoundConfig(min=20.0, not_worse_by=0.5)})


def evaluation(model: Package, psnr: float = 21.0, protocol: str = "p1") -> dict[str, Any]:
    return {"package_digest": model.digest, "metrics": {"psnr": psnr}, "protocol": {"name": protocol}}


def failed(model: Package, gates: GateConfig = GATES, **facts: Any) -> list[str]:
    return [verdict.gate for verdict in judge(model, Facts(**facts), gates) if not verdict.passed]


def test_all_pass(tmp_path: Path) -> None:
    model = package(tmp_path / "m")
    assert failed(model, evaluation=evaluation(model)) == []


@pytest.mark.parametrize(
    ("lineage", "value"),
    [
        ({"git_commit": None}, "gaps: git_commit"),
        ({"git_dirty": True}, "gaps: git_dirty"),
        ({"colour": 1}, "gaps: colour"),
    ],
)
def test_gaps_in_the_record(tmp_path: Path, lineage: dict[str, Any], value: str) -> None:
    model = package(tmp_path / "m", **lineage)
    (verdict,) = [v for v in judge(model, Facts(evaluation(model)), GATES) if not v.passed]
    assert (verdict.gate, verdict.value) == ("lineage", value)


def test_a_gap_that_is_allowed(tmp_path: Path) -> None:
    model = package(tmp_path / "m", git_commit=None)
    gates = GATES.model_copy(update={"may_lack": ("git_commit",)})
    assert failed(model, gates, evaluation=evaluation(model)) == []


def test_preview_and_evaluation(tmp_path: Path) -> None:
    model = package(tmp_path / "m", preview=False)
    assert failed(model) == ["preview", "evaluation", "psnr"]
    other = evaluation(model) | {"package_digest": "0" * 64}
    assert failed(model, evaluation=other) == ["preview", "evaluation"]


def test_a_unet_needs_a_registered_autoencoder(tmp_path: Path) -> None:
    model = package(tmp_path / "u", inner=package(tmp_path / "ae").folder)
    assert failed(model, evaluation=evaluation(model)) == ["autoencoder"]
    assert failed(model, evaluation=evaluation(model), autoencoder="models:/vq-autoencoder/1") == []


@pytest.mark.parametrize(
    ("mine", "protocol", "refused", "bound"),
    [
        (21.0, "p1", ["psnr"], ">= 21.5 (champion 22)"),
        (21.6, "p1", [], ">= 21.5 (champion 22)"),
        (25.0, "p2", ["protocol"], ">= 21.5 (champion 22)"),
        (float("nan"), "p1", ["psnr"], ">= 21.5 (champion 22)"),
    ],
)
def test_the_champion_is_the_measure_under_the_same_protocol(
    tmp_path: Path, mine: float, protocol: str, refused: list[str], bound: str
) -> None:
    model = package(tmp_path / "m")
    verdicts = judge(model, Facts(evaluation(model, mine, protocol), champion=evaluation(model, 22.0)), GATES)
    assert [v.gate for v in verdicts if not v.passed] == refused
    assert verdicts[-1].bound == bound
    (stamp,) = [verdict.value for verdict in verdicts if verdict.gate == "protocol"]
    assert stamp == ("equal" if protocol == "p1" else "name: 'p1' -> 'p2'")


def test_without_a_comparison_the_champions_protocol_does_not_matter(tmp_path: Path) -> None:
    model, gates = package(tmp_path / "m"), GateConfig(metrics={"psnr": BoundConfig(min=20.0)})
    assert failed(model, gates, evaluation=evaluation(model, 21.0, "p2"), champion=evaluation(model, 22.0)) == []


def test_a_person_must_have_approved(tmp_path: Path) -> None:
    model, gates = package(tmp_path / "m"), GATES.model_copy(update={"approval": True})
    assert failed(model, gates, evaluation=evaluation(model)) == ["approval"]
    assert failed(model, gates, evaluation=evaluation(model), approved_by="") == ["approval"]
    assert failed(model, gates, evaluation=evaluation(model), approved_by="ada") == []


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0, 10))
def test_less_is_better_mirrors_more_is_better(bound: float, champion: float, slack: float) -> None:
    more, less = BoundConfig(min=bound, not_worse_by=slack), BoundConfig(max=-bound, not_worse_by=slack)
    assert more.limit(champion) == -less.limit(-champion)
    assert more.holds(champion, None) == less.holds(-champion, None)


def test_a_bound_has_one_direction() -> None:
    for tree in ({"min": 1, "max": 2}, {}, {"not_worse_by": 1}):
        with pytest.raises(UserError, match="exactly one"):
            parse_config(tree, BoundConfig, "gates")


def test_file_of_gates(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text("vq-autoencoder: {metrics: {psnr: {min: 20}}}\nmine: {metrics: {}}\n")
    assert load_gates(path, "mine", "vq-autoencoder").metrics == {}
    assert load_gates(path, "other", "vq-autoencoder").metrics["psnr"].min == 20
    with pytest.raises(UserError, match="add a section"):
        load_gates(path, "other", "latent-unet")
    with pytest.raises(UserError, match="no such file"):
        load_gates(tmp_path / "gone.yaml", "mine", "vq-autoencoder")
    path.write_text("mine: {metric: {}}")
    with pytest.raises(UserError, match="did you mean metrics"):
        load_gates(path, "mine", "vq-autoencoder")


@pytest.mark.parametrize("name", ["promote.yaml", "promote-debug.yaml"])
def test_the_gates_of_the_repository_ask_for_what_is_measured(name: str) -> None:
    path, pixels = Path(__file__).parents[2] / "configs" / name, torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    pictures, codes, captions = PictureMeter(torch.device("cpu")), CodebookMeter(4, torch.device("cpu")), CaptionMeter()
    pictures.update(pixels, pixels)
    codes.update(torch.zeros(1, dtype=torch.int64))
    image, caption = draw_shape(seed=0, sample_id=0)
    captions.update(image[None], [caption])
    measured = {"vq-autoencoder": pictures.compute() | codes.compute(), "latent-unet": captions.compute()}
    for kind, values in measured.items():
        asked = load_gates(path, kind, kind).metrics
        assert asked and set(asked) <= set(values)
