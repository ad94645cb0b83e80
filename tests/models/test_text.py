"""Text towers: tokens, the null prompt, training and freezing, digests, and refusal of what is not there."""

from pathlib import Path

import pytest
import torch

from pipeline.config import UserError
from pipeline.models.text import (
    NULL_PROMPT,
    PretrainedTextConfig,
    TextTower,
    TrainableTextConfig,
    build_text_tower,
)

CAPTION = "a small red circle at the left on a blue background"


@pytest.fixture(scope="module")
def tower() -> TextTower:
    torch.manual_seed(0)
    return build_text_tower(TrainableTextConfig(width=16, num_layers=2, num_heads=2, context_length=20))


def test_tokens_are_clips(tower: TextTower) -> None:
    tokens = tower.tokenize([CAPTION, NULL_PROMPT, "red " * 50])
    assert tokens.shape == (3, 20) and tokens.dtype == torch.int64
    assert tokens[0, :5].tolist() == [49406, 320, 2442, 736, 7117]
    assert tokens[1].tolist() == [49406, 49407] + [0] * 18
    assert tokens[2, -1] == 49407 and (tokens[2, 1:-1] == 736).all()


def test_states(tower: TextTower) -> None:
    states = tower.encode([CAPTION, NULL_PROMPT])
    assert states.shape == (2, 20, 16)
    torch.testing.assert_close(states.mean(dim=2), torch.zeros(2, 20), atol=1e-5, rtol=0)  # after the final LayerNorm


def test_states_are_causal_and_differ_by_word(tower: TextTower) -> None:
    red, green = tower.encode([CAPTION, CAPTION.replace("red", "green")])
    torch.testing.assert_close(red[:3], green[:3])
    assert (red[3:] - green[3:]).abs().amax(dim=1).min() > 1e-4


def test_a_new_tower_tells_words_apart() -> None:
    torch.manual_seed(0)
    fresh = build_text_tower(TrainableTextConfig(width=64, num_layers=2, num_heads=2, context_length=16))
    left, right = fresh.encode([CAPTION, CAPTION.replace("left", "right")])
    assert (left[7] - right[7]).norm() > left[7].norm()  # random words: sqrt(2); open_clip's start: 0.5


def test_a_trainable_tower_learns(tower: TextTower) -> None:
    tower.encode([CAPTION]).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in tower.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    tower.zero_grad()


def test_a_frozen_tower_neither_learns_nor_leaves_evaluation(tower: TextTower) -> None:
    frozen = TextTower(tower.transformer, tower.tokenizer, layer=0, frozen=True)
    try:
        assert not frozen.train().training
        assert not frozen.encode([CAPTION]).requires_grad
        assert (frozen.encode([CAPTION]) - tower.encode([CAPTION])).abs().max() > 1e-3  # another layer
    finally:
        tower.requires_grad_(True).train()


def test_masked_padding_is_zero_behind_the_end_alone(tower: TextTower) -> None:
    masked = TextTower(tower.transformer, tower.tokenizer, tower.layer, frozen=False, mask_padding=True)
    captions = [CAPTION, NULL_PROMPT, "red " * 50]
    whole, kept = tower.encode(captions), masked.encode(captions)
    for row, length in enumerate((13, 2, 20)):
        assert torch.equal(kept[row, :length], whole[row, :length]) and not kept[row, length:].any()
    assert masked.digest() != tower.digest()


def test_digest_knows_the_weights(tower: TextTower) -> None:
    before = tower.digest()
    with torch.no_grad():
        tower.transformer.positional_embedding[0, 0] += 1e-3
    assert tower.digest() != before
    with torch.no_grad():
        tower.transformer.positional_embedding[0, 0] -= 1e-3


def test_pretrained_tower_from_a_local_file(tmp_path: Path) -> None:
    """The states of the last and the penultimate layer of a checkpoint that lies on disk."""
    import open_clip

    torch.manual_seed(0)
    name = "ViT-S-32-alt"
    model = open_clip.create_model(name, pretrained=None)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    towers = {
        layer: build_text_tower(PretrainedTextConfig(name=name, weights=str(tmp_path / "clip.pt"), layer=layer))
        for layer in ("last", "penultimate")
    }
    last, penultimate = towers["last"].encode([CAPTION]), towers["penultimate"].encode([CAPTION])
    assert last.shape == (1, towers["last"].context_length, towers["last"].width)
    assert not last.requires_grad and not any(p.requires_grad for p in towers["last"].parameters())
    assert (last - penultimate).abs().max() > 1e-3
    text = model.state_dict()
    assert torch.equal(towers["last"].transformer.token_embedding.weight, text["token_embedding.weight"])


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_heads"):
        build_text_tower(TrainableTextConfig(width=16, num_heads=3))
    with pytest.raises(UserError, match="no open_clip model"):
        build_text_tower(PretrainedTextConfig(name="ViT-X", weights="none"))
    with pytest.raises(UserError, match="cannot be loaded"):
        build_text_tower(PretrainedTextConfig(name="RN50", weights=str(tmp_path / "missing.pt")))
