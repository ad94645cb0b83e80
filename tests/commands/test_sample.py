"""`tessera sample` with each of its flags, on small models with random weights; several ranks draw the bytes of one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.__main__ import ABOUT, COMMANDS
from pipeline.checkpoint.package import UNET_KIND, save_package
from pipeline.command_line import run_program
from pipeline.generate import Generator
from pipeline.models.condition import InpaintConfig, UpscaleConfig
from pipeline.models.latent_diffusion import build_latent_diffusion
from tests.ranks import run_ranks
from tests.runs import environment, run
from tests.test_generate import CONFIG, autoencoder, save_autoencoder

CONDITIONS = {"plain": None, "inpaint": InpaintConfig(), "upscale": UpscaleConfig(factor=2)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported models `plain`, `inpaint` and `upscale`, a picture and a mask."""
    folder = tmp_path_factory.mktemp("sample")
    first = save_autoencoder(folder / "first", autoencoder())
    for name, condition in CONDITIONS.items():
        config = CONFIG.model_copy(update={"condition": condition})
        model, _ = build_latent_diffusion(config, seed=0)
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1, generator=draws)
        document = config.model_dump(mode="json") | {"kind": "diffusion"}
        save_package(folder / name, UNET_KIND, model.state_dict(), document, {}, "card", autoencoder=first)
    rows, columns = np.mgrid[:32, :32]
    given = np.stack([rows * 8, columns * 8, (rows // 8 + columns // 8) % 2 * 255], axis=2).astype(np.uint8)
    Image.fromarray(given).save(folder / "given.png")
    hole = np.zeros((32, 32), dtype=np.uint8)
    hole[5:20, 10:30] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    return folder


def drawn(place: Path, *words: str, model: str = "plain", out: str = "out") -> np.ndarray:
    """Run the command; its pictures in the order of their names, uint8 [B, H, W, 3]."""
    folder = place / out
    for old in folder.glob("*.png"):
        old.unlink()
    argv = ["sample", *words, "--model", str(place / model), "--out", str(folder)]
    assert run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv) == 0
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def given(place: Path) -> np.ndarray:
    return np.array(Image.open(place / "given.png"))


def test_num_prompts_and_seed(place: Path) -> None:
    pictures = drawn(place, "a red circle", "a blue star", "--num", "2", "--seed", "5")
    names = [path.name for path in sorted((place / "out").iterdir())]
    assert names == [f"{i:03d}-{name}.png" for i, name in enumerate(["a-red-circle"] * 2 + ["a-blue-star"] * 2)]
    prompts = ["a red circle", "a red circle", "a blue star", "a blue star"]
    assert np.array_equal(pictures, Generator.load(place / "plain").sample(prompts, [5, 6, 7, 8]))
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_negative_prompt_counts_only_under_guidance(place: Path) -> None:
    one = [drawn(place, "a red circle", "--negative", negative, "--guidance", "4") for negative in ("", "a blue star")]
    assert not np.array_equal(*one)
    expected = Generator.load(place / "plain").sample(
        ["a red circle"], [0], CONFIG.sampling.model_copy(update={"guidance_scale": 4.0}), "a blue star"
    )
    assert np.array_equal(one[1], expected)
    assert np.array_equal(*[drawn(place, "a", "--negative", text, "--guidance", "1") for text in ("", "a blue star")])


def test_structure_falls_with_strength(place: Path) -> None:
    flags = ["--init-image", str(place / "given.png"), "--steps", "50", "--num", "4", "--guidance", "1"]
    with torch.no_grad():
        first = autoencoder()
        seen = torch.from_numpy(given(place)).permute(2, 0, 1)[None] / 127.5 - 1.0
        kept = first.decode(first.encode(seen))[0].permute(1, 2, 0).numpy()
    correlations = []
    for strength in ("0.02", "0.3", "1.0"):
        pictures = drawn(place, "a red circle", *flags, "--strength", strength)
        correlations.append(np.mean([np.corrcoef(p.ravel(), kept.ravel())[0, 1] for p in pictures]))
    assert correlations[0] > correlations[1] + 0.1 > correlations[2] + 0.1, correlations  # of random networks


@pytest.mark.parametrize("model", ["plain", "inpaint"])
def test_only_the_hole_is_repainted(place: Path, model: str) -> None:
    flags = ["--init-image", str(place / "given.png"), "--mask", str(place / "hole.png"), "--num", "2"]
    pictures, hole = drawn(place, "a red circle", *flags, model=model), np.array(Image.open(place / "hole.png")) > 0
    for picture in pictures:
        assert np.array_equal(picture[~hole], given(place)[~hole])
    assert not np.array_equal(pictures[0][hole], given(place)[hole])
    assert not np.array_equal(pictures[0][hole], pictures[1][hole])


@pytest.mark.parametrize("model", ["plain", "inpaint"])
def test_outpainting_leaves_the_middle(place: Path, model: str) -> None:
    (picture,) = drawn(place, "a red circle", "--init-image", str(place / "given.png"), "--outpaint", "8", model=model)
    assert picture.shape == (48, 48, 3)
    assert np.array_equal(picture[8:-8, 8:-8], given(place))
    stretched = np.pad(given(place), ((8, 8), (8, 8), (0, 0)), mode="edge")
    assert not np.array_equal(picture, stretched)


def test_upscaling_doubles(place: Path) -> None:
    pictures = drawn(place, "a red circle", "--upscale", str(place / "given.png"), "--num", "2", model="upscale")
    assert pictures.shape == (2, 64, 64, 3)
    expected = Generator.load(place / "upscale").sample(["a red circle"] * 2, [0, 1], low_res=given(place))
    assert np.array_equal(pictures, expected)


def test_a_png_is_a_grid_and_a_size_is_kept(place: Path, tmp_path: Path) -> None:
    argv = ["sample", "a", "b", "--model", str(place / "plain"), "--out", str(tmp_path / "grid.png")]
    assert run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv) == 0
    assert Image.open(tmp_path / "grid.png").width == 2 * (128 + 4) + 4
    assert drawn(place, "a", "--size", "48", "--sampler", "euler", "--steps", "3").shape == (1, 48, 48, 3)


def test_wrong_use(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, word in (
        (["--mask", "m.png"], "--init-image"),
        (["--init-image", "g.png", "--mask", "m.png", "--outpaint", "8"], "one of them"),
        (["--num", "0"], "at least 1"),
        (["--init-image", str(place / "first" / "config.yaml")], "not a readable picture"),
        (["--sampler", "magic"], "sampler"),
    ):
        argv = ["sample", "a", "--model", str(place / "plain"), "--out", str(place / "x"), *flags]
        assert run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv) == 2
        assert word in capsys.readouterr().err


MANY = ["a red circle", "a blue star", "a green square", "--num-pictures", "7", "--steps", "2"]


def on_a_rank(place: Path) -> None:
    argv = ["sample", *MANY, "--model", str(place / "plain"), "--out", str(place / "two")]
    assert run_program("tessera", ABOUT, COMMANDS, "pipeline.commands", argv) == 0


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_ranks_draw_the_bytes_of_one(place: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as on each of the ranks
    drawn(place, *MANY, out="one")
    torch.set_num_threads(threads)
    run_ranks(on_a_rank, 2, place)
    assert len(files(place / "one")) == 21 and files(place / "one") == files(place / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "-m"],
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_real_launchers_draw_the_bytes_of_one(place: Path, launcher: list[str], request: pytest.FixtureRequest) -> None:
    out = request.node.callspec.id.replace(" ", "-")
    words = ["sample", *MANY, "--model", str(place / "plain"), "--out"]
    run(place, "pipeline", *words, str(place / "alone"))
    run(place, *launcher, "pipeline", *words, str(place / out), variables=environment(place) | {"PYTHONWARNINGS": ""})
    assert files(place / out) == files(place / "alone")
