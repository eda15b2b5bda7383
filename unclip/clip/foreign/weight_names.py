"""The names of a CLIP's weights, here and in other projects."""

import torch
from torch import Tensor

HUGGING_FACE = 1
OPEN_CLIP = 2
"""Columns of `NAMES`."""
#    ours                        Hugging Face                                         open_clip and OpenAI
NAMES = (
    ("vision.blocks.",           "vision_model.encoder.layers.",                      "visual.transformer.resblocks."),
    ("vision.patch.",            "vision_model.embeddings.patch_embedding.",          "visual.conv1."),
    ("vision.class_token",       "vision_model.embeddings.class_embedding",           "visual.class_embedding"),
    ("vision.positions",         "vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision.norm_pre.",         "vision_model.pre_layrnorm.",                        "visual.ln_pre."),
    ("vision.norm_post.",        "vision_model.post_layernorm.",                      "visual.ln_post."),
    ("vision.projection.weight", "visual_projection.weight",                          "visual.proj"),
    ("text.blocks.",             "text_model.encoder.layers.",                        "transformer.resblocks."),
    ("text.tokens.",             "text_model.embeddings.token_embedding.",            "token_embedding."),
    ("text.positions",           "text_model.embeddings.position_embedding.weight",   "positional_embedding"),
    ("text.norm_final.",         "text_model.final_layer_norm.",                      "ln_final."),
    ("text.projection.weight",   "text_projection.weight",                            "text_projection"),
    (".norm1.",                  ".layer_norm1.",                                     ".ln_1."),
    (".norm2.",                  ".layer_norm2.",                                     ".ln_2."),
    (".attention.qkv.",          ".self_attn.{qkv}_proj.",                            ".attn.in_proj_"),
    (".attention.out.",          ".self_attn.out_proj.",                              ".attn.out_proj."),
    (".mlp.0.",                  ".mlp.fc1.",                                         ".mlp.c_fc."),
    (".mlp.2.",                  ".mlp.fc2.",                                         ".mlp.c_proj."),
)  # fmt: skip
NO_WEIGHTS = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")
"""Last parts of keys that hold no weights."""


def their_keys(name: str, column: int) -> list[str]:
    """Their key for one of our names; three keys where they keep queries, keys and values apart."""
    for row in NAMES:
        name = name.replace(row[0], row[column])
    return [name.replace("{qkv}", part) for part in "qkv"] if "{qkv}" in name else [name]


def import_tensors(names: list[str], theirs: dict[str, Tensor], column: int) -> tuple[dict[str, Tensor], list[str]]:
    """Convert their tensors to ours. Returns those of `names` that they have, and the keys that nothing needs."""
    if column == OPEN_CLIP:  # CustomTextCLIP puts "text." before the names of the text tower
        theirs = {key.removeprefix("text."): tensor for key, tensor in theirs.items()}
    ours = {}
    unused = set(theirs)
    for name in names:
        keys = [key for key in their_keys(name, column) if key in theirs]
        unused -= set(keys)
        if keys:
            tensor = torch.cat([theirs[key] for key in keys]) if len(keys) > 1 else theirs[keys[0]]
            transposed = column == OPEN_CLIP and name.endswith("projection.weight")
            ours[name] = tensor.T if transposed else tensor.reshape(()) if name == "logit_scale" else tensor
    return ours, sorted(key for key in unused if key.split(".")[-1] not in NO_WEIGHTS)


def export_tensors(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert our tensors to Hugging Face's."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        keys = their_keys(name, HUGGING_FACE)
        theirs |= dict(zip(keys, tensor.chunk(len(keys)) if len(keys) > 1 else [tensor], strict=True))
    return theirs
