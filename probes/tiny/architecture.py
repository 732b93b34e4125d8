"""The network of `tiny` and its processor: a stock LLaVA (SigLIP tower, Llama decoder) for one CPU core."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from vlm_probe.probes.tiny.tokenizer import CHAT_TEMPLATE, CONTEXT, IMAGE

PIXELS = 112
"""Width and height that the processor resizes an image to."""
PATCH = 14
GRID = PIXELS // PATCH
TOKENS = GRID * GRID
"""Visual tokens of one image."""
HIDDEN = 128
HEADS = 4
VISION_LAYERS = 5
DECODER_LAYERS = 4


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A freshly initialised model; draws from torch's global generator."""
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = SiglipVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **ends,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=TOKENS,
        # The whole last layer: SigLIP has no class token that would have to be dropped.
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **ends,
    )
    model = LlavaForConditionalGeneration(config)
    _place_patches(model)
    model.generation_config.max_new_tokens = 48
    model.generation_config.do_sample = False
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor that ships with the model."""
    images = SiglipImageProcessor(
        size={"height": PIXELS, "width": PIXELS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        # Bilinear: torchvision, which transformers uses where it is installed, has no box filter.
        resample=2,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def _place_patches(model: LlavaForConditionalGeneration) -> None:
    """Start the learned table of patch positions as 2-D sines and cosines: places differ from the first step."""
    table = model.model.vision_tower.embeddings.position_embedding.weight
    width = HIDDEN // 4
    frequency = 1.0 / (100 ** (torch.arange(width) / width))
    row, column = torch.meshgrid(torch.arange(GRID).float(), torch.arange(GRID).float(), indexing="ij")
    y, x = row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency
    with torch.no_grad():
        table.copy_(torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1))
