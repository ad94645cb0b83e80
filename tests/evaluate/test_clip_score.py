"""CLIP score with weights of a local file: the mean of positive cosines, whatever the batches."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.config import UserError
from pipeline.evaluate.clip_score import ClipScoreMeter
from pipeline.torchvision_shim import declare_missing_operators

NAME = "ViT-S-32-alt"
CAPTIONS = ["a red circle", "a blue square at the left", "hot beverage"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    declare_missing_operators()
    import open_clip

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(open_clip.create_model(NAME, pretrained=None).state_dict(), path)
    return path


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_positive_cosines_in_any_batches(weights: Path) -> None:
    import open_clip

    whole, split = (ClipScoreMeter(NAME, str(weights), torch.device("cpu")) for _ in range(2))
    whole.update(pictures(), CAPTIONS)
    for i in range(3):
        split.update(pictures()[i : i + 1], CAPTIONS[i : i + 1])
    model, transform = open_clip.create_model_from_pretrained(NAME, pretrained=str(weights))
    with torch.no_grad():
        seen = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in pictures()])
        a, b = model.encode_image(seen), model.encode_text(open_clip.get_tokenizer(NAME)(CAPTIONS))
    wanted = 100 * torch.nn.functional.cosine_similarity(a, b).clamp(min=0).mean().item()
    assert whole.compute()["clip_score"] == pytest.approx(wanted, abs=1e-3)
    assert split.compute()["clip_score"] == pytest.approx(wanted, abs=1e-3)
    said = whole.protocol()
    assert said["clip_model"] == NAME and len(said["clip_weights"]) == 64 and "Resize(size=224" in said["clip_pixels"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--clip ViT-X: no open_clip model"):
        ClipScoreMeter("ViT-X", "none", torch.device("cpu"))
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipScoreMeter(NAME, str(tmp_path / "missing.pt"), torch.device("cpu"))
