"""A text tower as transformers' CLIPTextModel and CLIPTokenizer read it. Called by `pipeline.formats.unet`."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.text import TextTower
from pipeline.storage import write_bytes, write_json

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
"""The tokenizer's special words under their names in transformers; open_clip pads with token 0, which is "!"."""
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def write_text_encoder(text: TextTower, folder: Path) -> None:
    """`config.json` and `model.safetensors`; layers above the one whose states are taken are left out."""
    transformer = text.transformer
    num_layers = text.layer + 1
    block = transformer.transformer.resblocks[0]
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": transformer.token_embedding.num_embeddings,
        "hidden_size": text.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": num_layers,
        "num_attention_heads": block.attn.num_heads,
        "max_position_embeddings": text.context_length,
        "hidden_act": "gelu" if isinstance(block.mlp.gelu, nn.GELU) else "quick_gelu",
        "layer_norm_eps": transformer.ln_final.eps,
        "bos_token_id": transformer.token_embedding.num_embeddings - 2,
        "eos_token_id": transformer.token_embedding.num_embeddings - 1,
        "pad_token_id": 0,
    }
    write_json(folder / "config.json", config)
    state = {name: t.detach().cpu().clone() for name, t in _names(transformer.state_dict(), num_layers).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(text: TextTower, folder: Path) -> None:
    """CLIP's byte-pair vocabulary and merges, which open_clip brings along."""
    tokenizer: Any = text.tokenizer
    special = {tokenizer.sot_token_id: START, tokenizer.eot_token_id: END}
    vocabulary = {special.get(number, word): number for word, number in tokenizer.encoder.items()}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    write_bytes(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False).encode())
    write_bytes(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]).encode())
    names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PAD}
    length = {"model_max_length": text.context_length}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **names, **length})


def _names(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """State dict of CLIPTextModel from open_clip's TextTransformer."""
    found = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        for layer in range(num_layers):
            ours, theirs = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
            for own, other in _BLOCK.items():
                found[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{own}.{kind}"]
            parts = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                found[f"{theirs}.self_attn.{letter}_proj.{kind}"] = part
    return found
