"""How well drawn pictures fit their captions by a CLIP model (Hessel et al., "CLIPScore", arXiv 2104.08718).

The model is open_clip's, with weights of a local file or of a tag that lies in the cache; which ones is part of the
stamp. Called by `pipeline.stages.diffusion_evaluation`.
"""

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pipeline.config import UserError
from pipeline.distributed.process import all_reduce_sum
from pipeline.torchvision_shim import declare_missing_operators


class ClipScoreMeter:
    """Cosines of pictures and captions, added up; the figure is that of one process, whatever the ranks and batches.

    Args:
        name: open_clip model name, such as ViT-B-32.
        weights: path of a checkpoint of the whole model, or a tag.

    Raises:
        UserError: an unknown name, or weights that cannot be loaded.
    """

    def __init__(self, name: str, weights: str, device: torch.device) -> None:
        declare_missing_operators()
        import open_clip

        if name not in open_clip.list_models():
            raise UserError(f"--clip {name}: no open_clip model; see open_clip.list_models()")
        try:
            model, transform = open_clip.create_model_from_pretrained(name, pretrained=weights)
        except (RuntimeError, OSError) as error:
            raise UserError(f"--clip {name} {weights}: cannot be loaded: {str(error).splitlines()[0]}") from None
        self.name, self.device = name, device
        self.model = model.to(device).eval().requires_grad_(False)
        self.transform, self.tokenize = transform, open_clip.get_tokenizer(name)
        self.totals = torch.zeros(2, dtype=torch.float64)  # positive cosines, pictures

    @torch.no_grad()
    def update(self, images: Tensor, captions: Sequence[str]) -> None:
        """Add pictures, uint8 [B, 3, H, W], and what they were drawn for."""
        seen = torch.stack([self.transform(Image.fromarray(pixels.cpu().numpy())) for pixels in _last(images)])
        pictures = self.model.encode_image(seen.to(self.device), normalize=True)  # [B, D]
        texts = self.model.encode_text(self.tokenize(list(captions)).to(self.device), normalize=True)  # [B, D]
        cosines = (pictures * texts).sum(dim=1)  # [B]
        self.totals += torch.tensor([cosines.clamp(min=0).double().sum(), len(cosines)])

    def compute(self) -> dict[str, float]:
        """`clip_score`, 0 to 100; empty when nothing was seen. Collective."""
        total, count = all_reduce_sum(self.totals.clone()).tolist()
        return {"clip_score": 100.0 * total / count} if count else {}

    def protocol(self) -> dict[str, str]:
        """How it was measured, with the sha256 of the model's weights."""
        return {
            "clip_score": "100 max(cosine, 0) of picture and caption, mean over pictures",
            "clip_model": self.name,
            "clip_weights": self._digest(),
            "clip_pixels": " ".join(str(self.transform).split()),
        }

    def _digest(self) -> str:
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return total.hexdigest()


def _last(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, H, W, 3]."""
    return images.permute(0, 2, 3, 1)
