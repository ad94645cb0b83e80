"""Text towers: captions in, one state for each token out, [B, T, D], for the UNet's cross-attention.

Two kinds behind one face: a small tower trained together with the UNet, and a frozen pretrained one, known by its
open_clip name. Both are open_clip's TextTransformer (the CLIP tower of arXiv 2103.00020) with CLIP's tokenizer of 49408
tokens. The null prompt of classifier-free guidance is the encoding of the empty caption, in training as in sampling.
States behind a caption's end depend on the caption, and SD's UNet sees them; with `mask_padding` they are zeros, which
the UNet's attention passes over, so that stored states need not hold them.
Built by `pipeline.stages.diffusion`, `pipeline.generate` and latent precomputation.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config, UserError
from pipeline.torchvision_shim import declare_missing_operators

NULL_PROMPT = ""
"""The caption that stands for "no caption"."""


class TrainableTextConfig(Config):
    """A tower with random weights, trained together with the UNet."""

    kind: Literal["trainable"] = "trainable"
    """Chooses this tower."""
    width: int = Field(default=512, gt=0)
    """Width of the states: the UNet's `context_dim` must be equal to it."""
    num_layers: int = Field(default=12, gt=0)
    """Transformer layers."""
    num_heads: int = Field(default=8, gt=0)
    """Attention heads; they divide the width."""
    context_length: int = Field(default=77, gt=2)
    """Tokens of a caption with its start and end; longer captions are cut, shorter ones padded."""
    mask_padding: bool = False
    """Hide the places behind a caption's end from the UNet."""


class PretrainedTextConfig(Config):
    """A frozen tower of open_clip."""

    kind: Literal["pretrained"] = "pretrained"
    """Chooses this tower."""
    name: str
    """open_clip model name, e.g. ViT-L-14 (SD1) or ViT-H-14 (SD2)."""
    weights: str
    """open_clip tag of the weights, or the path of a local checkpoint of the whole CLIP model."""
    layer: Literal["last", "penultimate"] = "penultimate"
    """Which layer's output is taken, before the final normalisation (SD1: last, SD2: penultimate)."""
    mask_padding: bool = False
    """Hide the places behind a caption's end from the UNet, and store no states of them; SD1 and SD2 show them."""


TextConfig = Annotated[TrainableTextConfig | PretrainedTextConfig, Field(discriminator="kind")]


class TextTower(nn.Module):
    """Tokenizer and transformer; `width` and `context_length` are those of its states [B, T, D]."""

    def __init__(
        self, transformer: Any, tokenizer: Callable[..., Tensor], layer: int, frozen: bool, mask_padding: bool = False
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.frozen = frozen
        self.tokenizer = tokenizer
        self.layer = layer
        self.mask_padding = mask_padding
        if frozen:
            self.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        """D, the width of the states."""
        return int(self.transformer.width)

    @property
    def context_length(self) -> int:
        """T, the number of states of a caption."""
        return int(self.transformer.context_length)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token numbers, int64 [B, T] on the CPU: start, the caption, end, zeros."""
        return self.tokenizer(list(captions), context_length=self.context_length)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers [B, T] -> normalised states [B, T, D]; no gradient through a frozen tower.

        With `mask_padding`, zeros behind the end of the caption, whose token has the largest number.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output: dict[str, list[Tensor]] = self.transformer.forward_intermediates(
                tokens,
                indices=[self.layer],
                stop_early=True,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
            )
        states = output["text_intermediates"][0]  # [B, T, D]
        if not self.mask_padding:
            return states
        behind = torch.arange(tokens.shape[1], device=tokens.device) > tokens.argmax(dim=1, keepdim=True)  # [B, T]
        return states.masked_fill(behind[..., None], 0.0)  # [B, T, D]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """States of the captions [B, T, D] on the tower's device."""
        device = next(self.parameters()).device
        return self(self.tokenize(captions).to(device, non_blocking=True))  # [B, T, D]

    def train(self, mode: bool = True) -> "TextTower":
        """As in torch, but a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def digest(self) -> str:
        """sha256 of the weights: stored text states are valid for a tower of this digest only."""
        total = hashlib.sha256(f"layer {self.layer}{' masked' if self.mask_padding else ''}".encode())
        for name, tensor in sorted(self.transformer.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def build_text_tower(config: TrainableTextConfig | PretrainedTextConfig) -> TextTower:
    """The tower that `config` describes.

    Raises:
        UserError: heads that do not divide the width, an unknown name, or weights that are not there.
    """
    declare_missing_operators()
    if config.kind == "trainable":
        return _trainable(config)
    return _pretrained(config)


def _trainable(config: TrainableTextConfig) -> TextTower:
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import TextTransformer

    if config.width % config.num_heads:
        raise UserError(f"text.num_heads: {config.num_heads} heads do not divide the width {config.width}")
    tokenizer = SimpleTokenizer(context_length=config.context_length)
    transformer = TextTransformer(
        context_length=config.context_length,
        vocab_size=tokenizer.vocab_size,
        width=config.width,
        heads=config.num_heads,
        layers=config.num_layers,
        output_dim=None,
    )
    # As in Vaswani et al. (arXiv 1706.03762, section 3.4): words of unit variance and places beside them. open_clip's
    # start (0.02 and 0.01) is far below what its first layer adds, which leaves every state the same mixture of words.
    nn.init.normal_(transformer.token_embedding.weight)
    nn.init.normal_(transformer.positional_embedding, std=0.5)
    return TextTower(transformer, tokenizer, config.num_layers - 1, frozen=False, mask_padding=config.mask_padding)


def _pretrained(config: PretrainedTextConfig) -> TextTower:
    import open_clip

    if config.name not in open_clip.list_models():
        raise UserError(f"text.name: {config.name!r} is no open_clip model; see open_clip.list_models()")
    try:
        model = open_clip.create_model(
            config.name, pretrained=config.weights, force_custom_text=True, require_pretrained=True
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"text.weights: {config.weights!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    if not isinstance(model.text, open_clip.transformer.TextTransformer):
        raise UserError(f"text.name: the text tower of {config.name!r} is not CLIP's; choose e.g. ViT-H-14")
    num_layers = int(model.text.transformer.layers)
    layer = num_layers - 1 if config.layer == "last" else num_layers - 2
    return TextTower(
        model.text, open_clip.get_tokenizer(config.name), layer, frozen=True, mask_padding=config.mask_padding
    )
