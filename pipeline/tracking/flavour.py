"""The files that make a stored package a model which `mlflow.pyfunc` loads anywhere: what it takes, gives and needs.

The code that reads the package is stored with it, and the requirements name what that code imports in the versions
that are installed here. Called by `bundle` when a version is registered.
"""

import base64
import io
import json
import platform
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image

from pipeline.checkpoint.package import UNET_KIND, Package

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

LOADER = "pipeline.pyfunc"
CODE, REQUIREMENTS, PYTHON_ENV, EXAMPLE = "code.zip", "requirements.txt", "python_env.yaml", "input_example.json"

NEEDED = ("einops", "fsspec", "mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "torch")
"""What the code imports that loads and samples."""
NEEDED_FOR_TEXT = ("open_clip_torch", "torchvision")
"""What it imports besides for a text tower or its tokenizer."""

EXAMPLE_PROMPT, EXAMPLE_SIDE = "a red circle", 256


def write_flavour(folder: Path, package: Package, run_id: str) -> None:
    """Put MLmodel, requirements, the code and an example of the input beside the files of the package."""
    import mlflow.pyfunc
    from mlflow.models import Model

    _pack_code(Path(__file__).parents[1], folder / CODE)
    requirements = _requirements(package)
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements))
    environment = {"python": platform.python_version(), "dependencies": [f"-r {REQUIREMENTS}"]}
    (folder / PYTHON_ENV).write_text(yaml.safe_dump(environment))
    model = Model(run_id=run_id, artifact_path="package", signature=_signature(package))
    mlflow.pyfunc.add_to_model(model, LOADER, code=CODE, python_env=PYTHON_ENV)
    (folder / EXAMPLE).write_text(json.dumps(_example(package)))
    model.saved_input_example_info = {"artifact_path": EXAMPLE, "type": "dataframe", "pandas_orient": "split"}
    model.save(str(folder / "MLmodel"))


def _example(package: Package) -> dict[str, Any]:
    """A table as pandas splits it: a prompt and its seed, or a grey ramp of the autoencoder's size, a PNG in base64."""
    if package.kind == UNET_KIND:
        return {"columns": ["prompt", "seed"], "data": [[EXAMPLE_PROMPT, 0]]}
    side, file = package.config.get("resolution", EXAMPLE_SIDE), io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((side, side)).save(file, format="png")
    return {"columns": ["png"], "data": [[base64.b64encode(file.getvalue()).decode()]]}


def _pack_code(package: Path, target: Path) -> None:
    """The package as one archive that Python imports from as it is: hundreds of small files are slow to carry.

    The same code gives the same bytes.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                entry = zipfile.ZipInfo(path.relative_to(package.parent).as_posix())
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _signature(package: Package) -> "ModelSignature":
    """Columns and parameters of `pipeline.pyfunc`."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    png = Schema([ColSpec("binary", "png")])
    if package.kind != UNET_KIND:
        return ModelSignature(png, png)
    sampling: dict[str, Any] = package.config.get("sampling", {})
    params = [ParamSpec(name, kind, sampling[name]) for name, kind in _PARAMS.items() if name in sampling]
    inputs = Schema([ColSpec("string", "prompt"), ColSpec("long", "seed", required=False)])
    return ModelSignature(inputs, png, ParamSchema([*params, ParamSpec("negative", "string", "")]))


_PARAMS = {"num_steps": "long", "guidance_scale": "double", "sampler": "string"}


def _requirements(package: Package) -> list[str]:
    """`name==version` of what is installed here, without the +cpu or +cu of torch."""
    names = sorted({*NEEDED, *(NEEDED_FOR_TEXT if package.kind == UNET_KIND else ())})
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
