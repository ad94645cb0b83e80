"""A registered model as `mlflow.pyfunc` sees it: a table of prompts in, a table of PNG pictures out.

MLflow imports this module from the `code.zip` that is stored with the version and calls `_load_pyfunc` (the name is its
contract); `pipeline.tracking.flavour` declares it. Nothing here imports MLflow, so that serving needs only what the
version's requirements.txt says.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.checkpoint.package import UNET_KIND, load_package
from pipeline.config import UserError, parse_config
from pipeline.data.transforms import to_model, to_uint8
from pipeline.generate import Generator
from pipeline.models.packaged import load_autoencoder
from pipeline.models.text import NULL_PROMPT


class PromptModel:
    """A latent-unet: columns `prompt` and, if given, `seed` (else the number of the row) to a column `png`."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.generator = Generator.load(folder, device)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The same kind of table as `model_input`, with the column `png`: a PNG file's bytes for each row.

        Args:
            model_input: a table (pandas.DataFrame) with `prompt`: str and optionally `seed`: int.
            params: any of `num_steps`, `guidance_scale`, `sampler`, `negative`; else what the model carries.

        Raises:
            UserError: a setting out of its range, or a prompt that is no text.
        """
        given = dict(params or {})
        negative = given.pop("negative", NULL_PROMPT)
        default = self.generator.sampling
        sampling = parse_config({**default.model_dump(), **given}, type(default), source="params")
        prompts = list(model_input["prompt"])
        if not all(isinstance(prompt, str) for prompt in prompts):  # what MLflow makes of a dict of lists
            raise UserError("prompt: one text for each row; give a pandas.DataFrame or a list of dicts")
        seeds = [int(seed) for seed in model_input["seed"]] if "seed" in model_input else range(len(prompts))
        return _table(model_input, self.generator.sample(prompts, seeds, sampling, negative))


class ReconstructionModel:
    """A vq-autoencoder: a column `png` of pictures of the model's size to the same column, encoded and decoded."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.autoencoder = load_autoencoder(load_package(folder)).to(device)
        self.device = device

    @torch.no_grad()
    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The same kind of table, with what the decoder makes of each picture's codes; `params` has no keys."""
        pictures = []
        for data in model_input["png"]:
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))  # [H, W, 3]
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device)  # [1, 3, H, W]
            restored = to_uint8(self.autoencoder(to_model(image)).images)  # [1, 3, H, W]
            pictures.append(restored[0].permute(1, 2, 0).cpu().numpy())  # [H, W, 3]
        return _table(model_input, pictures)


def _load_pyfunc(path: str) -> PromptModel | ReconstructionModel:
    """What MLflow calls with the folder of the version, on the GPU where there is one."""
    folder, device = Path(path), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = load_package(folder).kind
    return PromptModel(folder, device) if kind == UNET_KIND else ReconstructionModel(folder, device)


def _table(like: Any, pictures: Sequence[np.ndarray] | np.ndarray) -> Any:
    """A table of the caller's own class: pandas is MLflow's affair."""
    return type(like)({"png": [_png(picture) for picture in pictures]})


def _png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return file.getvalue()
