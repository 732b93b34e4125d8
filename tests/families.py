"""Small untrained models of many families: real architectures and processors, in the hub's file layout.

What differs between them: pictures cut into tiles (LLaVA-NeXT, LLaVA-OneVision, SmolVLM, InternVL) or patched at any size
(Qwen), positions in two dimensions (Qwen), pictures fed into several layers (Qwen3-VL), no chat template and positions
from 1 (PaliGemma), a window of attention (Gemma 3).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Family:
    """What the tests expect of a family.

    Attributes:
        make: Builds the model and its processor.
        end: The token that ends a reply.
        seen: What the model gets of a picture of 64 x 64 pixels.
        small: What it gets of one of 5 x 3.
        text_only: Whether it can be asked without a picture.
    """

    make: Callable[[], tuple[Any, Any]]
    end: str
    seen: str
    small: str
    text_only: bool = True


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
SQUARE = {"height": 32, "width": 32}
GRID = [[32, 64], [64, 32], [64, 64]]


def tokenizer_of(*special: str, **named: str) -> Any:
    """A tokenizer of single bytes with these special tokens after <pad> and <eos>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(words[: 2 + len(special)])
    bos = {"bos_token": "<bos>"} if "<bos>" in special else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", extra_special_tokens=named, **bos
    )


def template(image: str, start: str = "", end: str = "<eos>") -> str:
    return (
        start + "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' }}{% for part in m['content'] %}"
        "{{ '" + image + "' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{{ '" + end + "\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
    )


def llava() -> tuple[Any, Any]:
    import transformers as t

    processor = t.LlavaProcessor(
        image_processor=t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
        tokenizer=tokenizer_of("<turn>", "<image>", image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    config = t.LlavaConfig(
        text_config=SMALL | {"model_type": "llama", "vocab_size": len(processor.tokenizer)},
        vision_config=EYE | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=3,
        image_seq_length=16,
    )
    return t.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    import transformers as t

    processor = t.LlavaNextProcessor(
        image_processor=t.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=GRID
        ),
        tokenizer=tokenizer_of("<turn>", "<image>", image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    config = t.LlavaNextConfig(
        text_config=SMALL | {"model_type": "mistral", "vocab_size": len(processor.tokenizer), "sliding_window": None},
        vision_config=EYE | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=3,
        image_grid_pinpoints=GRID,
        image_seq_length=16,
    )
    return t.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    import transformers as t

    named = {"image_token": "<image>", "video_token": "<video>"}
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=GRID),
        tokenizer=tokenizer_of("<turn>", *named.values(), **named),
        video_processor=t.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    config = t.LlavaOnevisionConfig(
        text_config=SMALL | {"model_type": "qwen2", "vocab_size": len(processor.tokenizer)},
        vision_config=EYE | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=3,
        video_token_index=4,
        image_grid_pinpoints=GRID,
    )
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def qwen(version: str) -> tuple[Any, Any]:
    import transformers as t

    special = ("<turn>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    three = version == "3"
    patch = 16 if three else 14
    processor = (t.Qwen3VLProcessor if three else t.Qwen2_5_VLProcessor)(
        image_processor=t.Qwen2VLImageProcessor(
            patch_size=patch,
            merge_size=2,
            size={"shortest_edge": 4 * patch * patch, "longest_edge": 9 * 4 * patch * patch},
        ),
        tokenizer=tokenizer_of(*special),
        video_processor=t.Qwen3VLVideoProcessor() if three else t.Qwen2VLVideoProcessor(),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = SMALL | {"vocab_size": len(processor.tokenizer), "rope_parameters": rope}
    eye = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    eye |= {"patch_size": patch, "initializer_range": 0.2}
    special_ids = {
        "image_token_id": 3,
        "video_token_id": 4,
        "vision_start_token_id": 5,
        "vision_end_token_id": 6,
    }
    if three:
        deep = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
        head = {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}}
        config = t.Qwen3VLConfig(vision_config=eye | deep, text_config=text | head, **special_ids)
        return t.Qwen3VLForConditionalGeneration(config), processor
    window = {"window_size": 4 * patch, "fullatt_block_indexes": [1]}
    config = t.Qwen2_5_VLConfig(vision_config=eye | window, text_config=text, **special_ids)
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    import transformers as t

    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    named = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    size = {"longest_edge": 32}
    video = {"fps": 1, "max_frames": 2, "video_size": size}
    processor = t.SmolVLMProcessor(
        image_processor=t.SmolVLMImageProcessor(
            size={"longest_edge": 64}, max_image_size=size, do_image_splitting=True
        ),
        tokenizer=tokenizer_of("<turn>", *named.values(), *tiles, **named),
        video_processor=t.SmolVLMVideoProcessor(size=size, max_image_size=size, video_sampling=video),
        image_seq_len=4,
        chat_template=template("<image>", end="<end_of_utterance>"),
    )
    config = t.SmolVLMConfig(
        text_config=SMALL | {"model_type": "llama", "vocab_size": len(processor.tokenizer)},
        vision_config=EYE,
        scale_factor=2,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = t.SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    return model, processor


def internvl() -> tuple[Any, Any]:
    import transformers as t

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    processor = t.InternVLProcessor(
        image_processor=t.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer_of("<turn>", "<|im_end|>", *named.values(), **named),
        video_processor=t.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>", end="<|im_end|>"),
    )
    config = t.InternVLConfig(
        text_config=SMALL | {"model_type": "qwen3", "vocab_size": len(processor.tokenizer), "head_dim": 16},
        vision_config=EYE | {"image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    model = t.InternVLForConditionalGeneration(config)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    return model, processor


def gemma3(window: int = 1024) -> tuple[Any, Any]:
    import torch
    import transformers as t

    named = {"image_token": "<soft>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessor(size=SQUARE, image_seq_length=4),
        tokenizer=tokenizer_of("<bos>", "<turn>", "<end>", *named.values(), **named),
        image_seq_length=4,
        chat_template=template("<start_of_image>", start="{{ bos_token }}", end="<end>"),
    )
    text = {"vocab_size": len(processor.tokenizer), "head_dim": 16, "bos_token_id": 2, "sliding_window": window}
    config = t.Gemma3Config(
        text_config=SMALL | text | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config=EYE | {"vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    model = t.Gemma3ForConditionalGeneration(config)
    # Untrained, it would not look at pictures at all: this starts at zero.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.5)
    model.generation_config.eos_token_id = [1, 4]
    return model, processor


def paligemma() -> tuple[Any, Any]:
    import transformers as t

    pictures = t.SiglipImageProcessor(size=SQUARE)
    pictures.image_seq_length = 16
    processor = t.PaliGemmaProcessor(
        image_processor=pictures, tokenizer=tokenizer_of("<bos>", "<image>", image_token="<image>")
    )
    text = {"model_type": "gemma2", "vocab_size": len(processor.tokenizer), "head_dim": 16, "bos_token_id": 2}
    config = t.PaliGemmaConfig(
        text_config=SMALL | text | {"query_pre_attn_scalar": 16},
        vision_config=EYE | {"vision_use_head": False, "projection_dim": 64},
        image_token_index=3,
        projection_dim=64,
        hidden_size=64,
    )
    return t.PaliGemmaForConditionalGeneration(config), processor


FAMILIES = {
    "llava": Family(llava, "<eos>", "32 x 32", "32 x 32"),
    "llava-next": Family(llava_next, "<eos>", "5 of 32 x 32", "3 of 32 x 32"),
    "llava-onevision": Family(llava_onevision, "<eos>", "5 of 32 x 32", "3 of 32 x 32"),
    "qwen2.5-vl": Family(lambda: qwen("2.5"), "<eos>", "56 x 56", "56 x 28"),
    "qwen3-vl": Family(lambda: qwen("3"), "<eos>", "64 x 64", "64 x 32"),
    "smolvlm": Family(smolvlm, "<end_of_utterance>", "5 of 32 x 32", "5 of 32 x 32"),
    "internvl": Family(internvl, "<|im_end|>", "5 of 32 x 32", "3 of 32 x 32"),
    "gemma3": Family(gemma3, "<end>", "32 x 32", "32 x 32"),
    "paligemma": Family(paligemma, "<eos>", "32 x 32", "32 x 32", text_only=False),
}


@dataclass(frozen=True)
class Recipe:
    """How a small checkpoint of a family is built, as data.

    Attributes:
        network: Class of the network.
        config: Its settings. Names of tokens in the place of their ids are looked up in the tokenizer.
        images: Class and settings of the image processor.
        processor: Class and settings of the processor.
        tokens: Special tokens that the tokenizer has a name for.
        words: Other special tokens.
        image: What a chat template writes in the place of an image; empty: the checkpoint has no chat template.
        further: What else the processor is made of: name -> class, settings.
        last: A token that comes after all others.
    """

    network: str
    config: dict[str, Any]
    images: tuple[str, dict[str, Any]]
    processor: tuple[str, dict[str, Any]]
    tokens: dict[str, str]
    words: tuple[str, ...] = ()
    image: str = ""
    further: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    last: str = ""


ALL = object()
"""Stands for the size of the tokenizer in a recipe."""
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
PARTIAL_MROPE = {**MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
GRID_EYE = {
    **{"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64},
    **{"initializer_range": 0.2, "patch_size": 14},
}
GRID_IMAGES = {"size": {"shortest_edge": 4 * 14**2, "longest_edge": 36 * 14**2}, "patch_size": 14, "merge_size": 2}
GRID16_IMAGES = {"size": {"shortest_edge": 4 * 16**2, "longest_edge": 36 * 16**2}, "patch_size": 16, "merge_size": 2}
QWEN_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_IDS = {
    **{"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
    **{"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"},
}
QWEN_WORDS = ("<|vision_start|>", "<|vision_end|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VIDEO = {"video_processor": ("Qwen2VLVideoProcessor", {})}
QWEN3_VIDEO = {"video_processor": ("Qwen3VLVideoProcessor", {})}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    **{"layer_types": ["linear_attention", "full_attention"], "head_dim": 32},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "rope_parameters": {**PARTIAL_MROPE, "partial_rotary_factor": 0.25, "mrope_interleaved": True},
}
QWEN3_EYE = GRID_EYE | {"patch_size": 16, "num_position_embeddings": 36}
CLIP = EYE | {"model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = EYE | {"model_type": "siglip_vision_model", "vision_use_head": False}
LLAVA_LIKE = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
CLIP_IMAGES = ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE})
GLM = Recipe(
    "Glm4vForConditionalGeneration",
    {
        "text_config": SMALL | {"rope_parameters": PARTIAL_MROPE},
        "vision_config": GRID_EYE | {"image_size": 56},
        **{"image_token_id": "<|image|>", "video_token_id": "<|video|>"},
        **{"image_start_token_id": "<|begin_of_image|>", "image_end_token_id": "<|end_of_image|>"},
        **{"video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"},
    },
    ("Glm4vImageProcessor", GRID_IMAGES),
    ("Glm4vProcessor", {}),
    {"image_token": "<|image|>", "video_token": "<|video|>"},
    ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    "<|begin_of_image|><|image|><|end_of_image|>",
    {"video_processor": ("Glm4vVideoProcessor", {})},
)
QWEN3_5 = Recipe(
    "Qwen3_5ForConditionalGeneration",
    {"text_config": SMALL | LINEAR, "vision_config": QWEN3_EYE, **QWEN_IDS},
    ("Qwen2VLImageProcessor", GRID16_IMAGES),
    ("Qwen3VLProcessor", {}),
    QWEN_TOKENS,
    QWEN_WORDS,
    QWEN_IMAGE,
    QWEN3_VIDEO,
)
PIXTRAL = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 64, "patch_size": 8, "initializer_range": 0.2, "model_type": "pixtral"},
}
PIXTRAL_WORDS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
MISTRAL = SMALL | {"model_type": "mistral", "sliding_window": None}
JANUS_TOKENS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
QFORMER = {
    **{"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 64, "initializer_range": 0.2, "encoder_hidden_size": 32, "max_position_embeddings": 2048},
}
BLIP_IMAGES = ("BlipImageProcessor", {"size": SQUARE})

RECIPES: dict[str, Recipe] = {
    "qwen2-vl": Recipe(
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": SMALL | {"rope_parameters": MROPE},
            "vision_config": {
                **{"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
                **{"patch_size": 14, "initializer_range": 0.2},
            },
            **QWEN_IDS,
        },
        ("Qwen2VLImageProcessor", GRID_IMAGES),
        ("Qwen2VLProcessor", {}),
        QWEN_TOKENS,
        QWEN_WORDS,
        QWEN_IMAGE,
        QWEN_VIDEO,
    ),
    "qwen3-vl-moe": Recipe(
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": SMALL | MOE | {"head_dim": 16, "rope_parameters": MROPE | {"mrope_interleaved": True}},
            "vision_config": QWEN3_EYE | {"deepstack_visual_indexes": [0, 1]},
            **QWEN_IDS,
        },
        ("Qwen2VLImageProcessor", GRID16_IMAGES),
        ("Qwen3VLProcessor", {}),
        QWEN_TOKENS,
        QWEN_WORDS,
        QWEN_IMAGE,
        QWEN3_VIDEO,
    ),
    "qwen3.5": QWEN3_5,
    "qwen3.5-moe": replace(
        QWEN3_5,
        network="Qwen3_5MoeForConditionalGeneration",
        config=QWEN3_5.config | {"text_config": SMALL | LINEAR | MOE | {"shared_expert_intermediate_size": 32}},
    ),
    "glm4v": GLM,
    "glm46v": replace(
        GLM,
        network="Glm46VForConditionalGeneration",
        config=GLM.config
        | {
            "text_config": GLM.config["text_config"] | {"model_type": "glm4v_text"},
            "vision_config": GLM.config["vision_config"] | {"model_type": "glm4v_vision"},
        },
        images=("Glm46VImageProcessor", GRID_IMAGES),
        processor=("Glm46VProcessor", {}),
        further={"video_processor": ("Glm46VVideoProcessor", {})},
    ),
    "gemma4": Recipe(
        "Gemma4ForConditionalGeneration",
        {
            "text_config": SMALL
            | {
                **{"num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 16, "bos_token_id": "<bos>"},
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                **{"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 300},
            },
            "vision_config": {
                **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 640, "initializer_range": 0.2},
            },
            "audio_config": None,
            **{"image_token_id": "<|image|>", "video_token_id": "<|video|>", "audio_token_id": "<|audio|>"},
            **{"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "boa_token_id": "<|audio>"},
        },
        ("Gemma4ImageProcessor", {"max_soft_tokens": 70}),
        ("Gemma4Processor", {"image_seq_length": 70}),
        {
            **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
            **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
        },
        ("<bos>", "<|video|>"),
        "<|image|>",
        {
            "feature_extractor": ("Gemma4AudioFeatureExtractor", {}),
            "video_processor": ("Gemma4VideoProcessor", {}),
        },
    ),
    "mistral3": Recipe(
        "Mistral3ForConditionalGeneration",
        {"text_config": MISTRAL, "vision_config": PIXTRAL, "image_token_index": "[IMG]", "spatial_merge_size": 2},
        ("PixtralImageProcessor", {"size": {"longest_edge": 64}, "patch_size": 8}),
        ("PixtralProcessor", {"patch_size": 8, "spatial_merge_size": 2}),
        {},
        PIXTRAL_WORDS,
        "[IMG]",
    ),
    "pixtral": Recipe(
        "LlavaForConditionalGeneration",
        {
            **{"text_config": MISTRAL, "vision_config": PIXTRAL, "image_token_index": "[IMG]"},
            **{"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        },
        ("PixtralImageProcessor", {"size": {"longest_edge": 64}, "patch_size": 8}),
        ("PixtralProcessor", {"patch_size": 8}),
        {},
        PIXTRAL_WORDS,
        "[IMG]",
    ),
    "idefics2": Recipe(
        "Idefics2ForConditionalGeneration",
        {
            "text_config": MISTRAL,
            "vision_config": EYE | {"image_size": 64},
            "perceiver_config": {
                **{"hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2},
                **{"resampler_head_dim": 16, "num_key_value_heads": 1, "initializer_range": 0.2},
            },
            "image_token_id": "<image>",
        },
        ("Idefics2ImageProcessor", {"size": {"shortest_edge": 32, "longest_edge": 64}}),
        ("Idefics2Processor", {"image_seq_len": 4}),
        {"image_boundary_token": "<fake_token_around_image>", "image_token": "<image>"},
        ("<end_of_utterance>",),
        "<image>",
    ),
    "idefics3": Recipe(
        "Idefics3ForConditionalGeneration",
        {
            **{"text_config": SMALL | {"model_type": "llama"}, "vision_config": EYE, "scale_factor": 2},
            "image_token_id": "<image>",
        },
        ("Idefics3ImageProcessor", {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}),
        ("Idefics3Processor", {"image_seq_len": 4}),
        {},
        (
            *("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
            *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
        ),
        "<image>",
    ),
    "mllama": Recipe(
        "MllamaForConditionalGeneration",
        {
            "text_config": SMALL
            | {
                "num_hidden_layers": 3,
                "cross_attention_layers": [1],
                "bos_token_id": "<bos>",
                "vocab_size": "<|image|>",
            },
            "vision_config": {
                **{"hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2},
                **{"intermediate_size": 64, "vision_output_dim": 64, "image_size": 32, "patch_size": 8},
                **{"intermediate_layers_indices": [0], "initializer_range": 0.2},
            },
            "image_token_index": "<|image|>",
        },
        ("MllamaImageProcessor", {"size": SQUARE, "max_image_tiles": 4}),
        ("MllamaProcessor", {}),
        {"image_token": "<|image|>"},
        ("<bos>", "<|python_tag|>"),
        "<|image|>",
        last="<|image|>",
    ),
    "llama4": Recipe(
        "Llama4ForConditionalGeneration",
        {
            "text_config": SMALL
            | {
                **{"head_dim": 16, "intermediate_size_mlp": 64, "num_local_experts": 2},
                **{"interleave_moe_layer_step": 2, "no_rope_layer_interval": 2, "bos_token_id": None},
            },
            "vision_config": {
                **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
                **{"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64, "image_size": 32},
                **{"patch_size": 8, "initializer_range": 0.2},
            },
            **{"boi_token_index": "<|image_start|>", "eoi_token_index": "<|image_end|>"},
            "image_token_index": "<|patch|>",
        },
        ("Llama4ImageProcessor", {"size": SQUARE, "max_patches": 4}),
        ("Llama4Processor", {"patch_size": 8}),
        {},
        (
            *("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        "<|image|>",
    ),
    "lfm2-vl": Recipe(
        "Lfm2VlForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
            "vision_config": {
                **{"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64},
                **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_patches": 16, "patch_size": 16},
                **{"vision_use_head": False, "initializer_range": 0.2},
            },
            **{"image_token_id": "<image>", "projector_hidden_size": 64},
        },
        (
            "Lfm2VlImageProcessor",
            {
                **{"min_tiles": 2, "max_tiles": 4, "min_image_tokens": 1, "max_image_tokens": 4, "tile_size": 64},
                **{"size": {"height": 64, "width": 64}, "max_pixels_tolerance": 1.0},
            },
        ),
        ("Lfm2VlProcessor", {}),
        {
            **{"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"},
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        tuple(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
        "<image>",
    ),
    "deepseek-vl": Recipe(
        "DeepseekVLForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "llama"},
            "vision_config": SIGLIP,
            "image_token_id": "<image_placeholder>",
        },
        ("DeepseekVLImageProcessor", {"size": SQUARE}),
        ("DeepseekVLProcessor", {"num_image_tokens": 16}),
        {"image_token": "<image_placeholder>"},
        (),
        "<image_placeholder>",
    ),
    "deepseek-vl-hybrid": Recipe(
        "DeepseekVLHybridForConditionalGeneration",
        {
            **{"text_config": SMALL | {"model_type": "llama"}, "vision_config": SIGLIP},
            "high_res_vision_config": {
                **{"model_type": "sam_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "mlp_dim": 64},
                **{"num_attention_heads": 2, "image_size": 128, "patch_size": 16, "output_channels": 16},
                **{"window_size": 4, "global_attn_indexes": [1], "initializer_range": 0.2},
            },
            "image_token_id": "<image_placeholder>",
        },
        ("DeepseekVLHybridImageProcessor", {"size": SQUARE, "high_res_size": {"height": 128, "width": 128}}),
        ("DeepseekVLHybridProcessor", {"num_image_tokens": 16}),
        {"image_token": "<image_placeholder>"},
        (),
        "<image_placeholder>",
    ),
    "janus": Recipe(
        "JanusForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "llama"},
            "vision_config": EYE | {"num_image_tokens": 16, "projection_dim": 64, "mlp_ratio": 2.0},
            "vq_config": {
                **{"embed_dim": 8, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32},
                **{
                    "channel_multiplier": [1, 1],
                    "num_res_blocks": 1,
                    "projection_dim": 64,
                    "image_token_embed_dim": 64,
                },
            },
            "image_token_id": "<image_placeholder>",
        },
        ("JanusImageProcessor", {"size": SQUARE}),
        ("JanusProcessor", {"num_image_tokens": 16}),
        JANUS_TOKENS,
        (),
        "<image_placeholder>",
    ),
    "aya-vision": Recipe(
        "AyaVisionForConditionalGeneration",
        {
            **{"text_config": SMALL | {"model_type": "cohere2", "head_dim": 16}, "vision_config": SIGLIP},
            **{"image_token_index": "<|IMG_PATCH|>", "downsample_factor": 2},
        },
        ("GotOcr2ImageProcessor", {"size": SQUARE, "crop_to_patches": True, "max_patches": 4}),
        ("AyaVisionProcessor", {"patch_size": 8, "img_size": 32, "downsample_factor": 2}),
        {},
        (
            *("<image>", "<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE"),
            *("TILE_GLOBAL", "TILE_1", "TILE_2", "TILE_3", "TILE_4"),
        ),
        "<image>",
    ),
    "cohere2-vision": Recipe(
        "Cohere2VisionForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "cohere2", "head_dim": 16},
            "vision_config": SIGLIP | {"patch_size": 4},
            **{"image_token_id": "<|IMG_PATCH|>", "downsample_factor": 2, "alignment_intermediate_size": 64},
        },
        ("Cohere2VisionImageProcessor", {"size": SQUARE, "patch_size": 4, "max_patches": 4}),
        ("Cohere2VisionProcessor", {}),
        {
            **{"image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"},
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        (),
        "<|IMG_PATCH|>",
    ),
    "ovis2": Recipe(
        "Ovis2ForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "qwen2"},
            "vision_config": {
                **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"image_size": 32, "patch_size": 8, "hidden_stride": 2, "vocab_size": 64, "initializer_range": 0.2},
            },
            **{"image_token_id": "<IMG_ATOM>", "hidden_size": 64, "vocab_size": ALL},
            "visual_indicator_token_ids": ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"],
        },
        ("Ovis2ImageProcessor", {"size": SQUARE, "crop_to_patches": True, "max_patches": 4}),
        ("Ovis2Processor", {"image_seq_length": 4}),
        {},
        ("<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        "<image>",
    ),
    "molmo2": Recipe(
        "Molmo2ForConditionalGeneration",
        {
            "text_config": SMALL | {"head_dim": 16, "additional_vocab_size": 16},
            "vision_config": {
                **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"num_key_value_heads": 2, "head_dim": 16, "image_size": [32, 32], "patch_size": 8},
                "initializer_range": 0.2,
            },
            "adapter_config": {
                **{"vision_feature_layer": [1, 0], "hidden_size": 32, "num_attention_heads": 2, "head_dim": 16},
                **{"num_key_value_heads": 2, "intermediate_size": 64, "text_hidden_size": 64, "initializer_range": 0.2},
            },
            **{"image_start_token_id": "<im_start>", "low_res_image_start_token_id": "<low_res_im_start>"},
            **{"image_end_token_id": "<im_end>", "image_patch_id": "<im_patch>"},
            **{"frame_start_token_id": "<frame_start>", "frame_end_token_id": "<frame_end>"},
        },
        ("Molmo2ImageProcessor", {"size": SQUARE, "patch_size": 8, "overlap_margins": [1, 1], "max_crops": 4}),
        ("Molmo2Processor", {}),
        {"image_token": "<|image|>", "video_token": "<|video|>"},
        (
            *("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>"),
            *("<frame_end>", "<im_low>"),
        ),
        "<|image|>",
        {"video_processor": ("Molmo2VideoProcessor", {"size": SQUARE, "patch_size": 8})},
    ),
    "vipllava": Recipe(
        "VipLlavaForConditionalGeneration",
        {
            **{"text_config": SMALL | {"model_type": "llama"}, "vision_config": CLIP},
            **{"vision_feature_layer": [-2, -1], "image_token_index": "<image>", "image_seq_length": 16},
        },
        CLIP_IMAGES,
        ("LlavaProcessor", LLAVA_LIKE),
        {"image_token": "<image>"},
        (),
        "<image>",
    ),
    "video-llava": Recipe(
        "VideoLlavaForConditionalGeneration",
        {
            **{"text_config": SMALL | {"model_type": "llama"}, "vision_config": CLIP},
            **{"image_token_index": "<image>", "video_token_index": "<video>", "image_seq_length": 16},
        },
        ("VideoLlavaImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
        ("VideoLlavaProcessor", LLAVA_LIKE),
        {"image_token": "<image>", "video_token": "<video>"},
        (),
        "<image>",
        {"video_processor": ("VideoLlavaVideoProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE})},
    ),
    "blip-2": Recipe(
        "Blip2ForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 64, "init_std": 0.2},
            **{"vision_config": EYE, "qformer_config": QFORMER, "num_query_tokens": 4},
            "image_token_index": "<image>",
        },
        BLIP_IMAGES,
        ("Blip2Processor", {"num_query_tokens": 4}),
        {},
        last="<image>",
    ),
    "instructblip": Recipe(
        "InstructBlipForConditionalGeneration",
        {
            "text_config": SMALL | {"model_type": "llama"},
            **{"vision_config": EYE, "qformer_config": QFORMER, "num_query_tokens": 4},
            "image_token_index": "<image>",
        },
        BLIP_IMAGES,
        ("InstructBlipProcessor", {"num_query_tokens": 4}),
        {},
        further={"qformer_tokenizer": ("", {})},
        last="<image>",
    ),
    "florence2": Recipe(
        "Florence2ForConditionalGeneration",
        {
            "text_config": {
                **{"model_type": "bart", "d_model": 64, "encoder_layers": 1, "decoder_layers": 1},
                **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64},
                **{"decoder_ffn_dim": 64, "max_position_embeddings": 512, "bos_token_id": 2, "eos_token_id": 1},
                **{"pad_token_id": 0, "decoder_start_token_id": 1},
            },
            "vision_config": {
                **{"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]},
                **{"patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2]},
                **{"window_size": 4, "projection_dim": 64},
            },
            "image_token_id": "<image>",
        },
        ("CLIPImageProcessor", {"size": SQUARE, "do_center_crop": False, "image_seq_length": 17}),
        ("Florence2Processor", {}),
        {"image_token": "<image>"},
        ("<bos>",),
    ),
    "phi4-multimodal": Recipe(
        "Phi4MultimodalForCausalLM",
        {
            **SMALL,
            "vision_config": {
                **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
                **{"image_size": 448, "crop_size": 448, "patch_size": 14, "image_token_id": "<|image|>"},
            },
            "audio_config": {
                **{"hidden_size": 32, "intermediate_size": 64, "num_blocks": 1, "num_attention_heads": 2},
                **{"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32},
                **{"audio_token_id": "<|audio|>", "feature_layer": -1},
            },
            "original_max_position_embeddings": 2048,
        },
        ("Phi4MultimodalImageProcessor", {"dynamic_hd": 2}),
        ("Phi4MultimodalProcessor", {}),
        {"image_token": "<|image|>", "audio_token": "<|audio|>"},
        (),
        "<|image|>",
        {"audio_processor": ("Phi4MultimodalFeatureExtractor", {})},
    ),
    "qwen2.5-omni": Recipe(
        "Qwen2_5OmniForConditionalGeneration",
        {
            "thinker_config": {
                "text_config": SMALL | {"rope_parameters": MROPE, "tie_word_embeddings": False},
                "vision_config": GRID_EYE | {"window_size": 56, "fullatt_block_indexes": [1]},
                "audio_config": {
                    **{"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32},
                    "output_dim": 64,
                },
                **{"image_token_index": "<|IMAGE|>", "video_token_index": "<|VIDEO|>"},
                **{"audio_token_index": "<|AUDIO|>", "audio_start_token_id": "<|audio_bos|>"},
                "audio_end_token_id": "<|audio_eos|>",
                **{"vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"},
            },
            "enable_audio_output": False,
        },
        ("Qwen2VLImageProcessor", GRID_IMAGES),
        ("Qwen2_5OmniProcessor", {}),
        {
            **{"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>"},
            **{"vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>"},
            **{"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
        },
        (),
        "<|vision_bos|><|IMAGE|><|vision_eos|>",
        {**QWEN_VIDEO, "feature_extractor": ("WhisperFeatureExtractor", {"feature_size": 128})},
    ),
    "minicpmv4.6": Recipe(
        "MiniCPMV4_6ForConditionalGeneration",
        {
            "text_config": SMALL | LINEAR | {"model_type": "qwen3_5_text"},
            "vision_config": EYE | {"image_size": 56, "patch_size": 14},
            **{"insert_layer_id": 0, "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
        },
        ("MiniCPMV4_6ImageProcessor", {"max_slice_nums": 4, "scale_resolution": 56, "patch_size": 14}),
        ("MiniCPMV4_6Processor", {}),
        {
            **QWEN_TOKENS,
            **{"image_start_token": "<image>", "image_end_token": "</image>", "slice_start_token": "<slice>"},
            **{"slice_end_token": "</slice>", "image_id_start_token": "<image_id>"},
            "image_id_end_token": "</image_id>",
        },
        (),
        "<|image_pad|>",
        {"video_processor": ("MiniCPMV4_6VideoProcessor", {})},
    ),
    "ernie4.5-vl": Recipe(
        "Ernie4_5_VLMoeForConditionalGeneration",
        {
            "text_config": SMALL
            | {
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
                **{"moe_intermediate_size": [32, 32], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1},
            },
            "vision_config": {
                **{"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 14},
                "initializer_range": 0.2,
            },
            **{"image_start_token_id": "<|IMAGE_START|>", "image_end_token_id": "<|IMAGE_END|>"},
            **{"image_token_id": "<|IMAGE_PLACEHOLDER|>", "video_token_id": "<|VIDEO_PLACEHOLDER|>"},
            **{"video_start_token_id": "<|VIDEO_START|>", "video_end_token_id": "<|VIDEO_END|>"},
        },
        ("Ernie4_5_VLMoeImageProcessor", GRID_IMAGES),
        ("Ernie4_5_VLMoeProcessor", {}),
        {
            **{"image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>"},
            **{"image_end_token": "<|IMAGE_END|>", "video_token": "<|VIDEO_PLACEHOLDER|>"},
            **{"video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"},
        },
        (),
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        {"video_processor": ("Ernie4_5_VLMoeVideoProcessor", {"draw_on_frames": False})},
    ),
    "kimi-k2.5": Recipe(
        "Kimi_K25ForConditionalGeneration",
        {
            "text_config": SMALL
            | {
                **{"model_type": "deepseek_v3", "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 2},
                **{"topk_group": 1, "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 16},
                **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1},
                **{"num_key_value_heads": 4, "num_mtp_layers": 0},
            },
            "vision_config": {
                **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{"patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8},
            },
            **{"image_token_id": "<|media_pad|>", "video_token_id": "<|kimi_k25_video_placeholder|>"},
            **{"vision_start_token_id": "<|media_begin|>", "vision_end_token_id": "<|media_end|>"},
            "projection_hidden_size": 32,
        },
        ("Kimi_K25ImageProcessor", {"size": {"max_height": 56, "max_width": 56}, "max_patches": 36}),
        ("Kimi_K25Processor", {}),
        {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"},
        ("<|media_begin|>", "<|media_content|>", "<|media_end|>"),
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
        {"video_processor": ("Kimi_K25VideoProcessor", {})},
    ),
}


def build(name: str) -> tuple[Any, Any]:
    """The network and the processor of a recipe."""
    import transformers as t

    recipe = RECIPES[name]
    first = [word for word in recipe.tokens.values() if word != recipe.last]
    tokenizer = tokenizer_of("<turn>", *recipe.words, *first, **recipe.tokens)
    if recipe.last:
        tokenizer.add_tokens([recipe.last], special_tokens=True)

    def made(kind: str, settings: dict[str, Any]) -> Any:
        return getattr(t, kind)(**settings) if kind else tokenizer_of()

    parts = {part: made(*what) for part, what in {**recipe.further, "image_processor": recipe.images}.items()}
    kind, settings = recipe.processor
    written = {"chat_template": template(recipe.image)} if recipe.image else {}
    processor = made(kind, {**parts, "tokenizer": tokenizer, **settings, **written})
    size = len(processor.tokenizer)

    def resolved(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            inner = {name: resolved(one, name) for name, one in value.items()}
            own = {"vocab_size": size} if "max_position_embeddings" in inner and "vocab_size" not in inner else {}
            return inner | own
        if isinstance(value, list):
            return [resolved(one, key) for one in value]
        if value is ALL:
            return size
        named = isinstance(value, str) and key.endswith(("_id", "_ids", "_index", "vocab_size"))
        return tokenizer.convert_tokens_to_ids(value) if named else value

    network_class = getattr(t, recipe.network)
    network = network_class(network_class.config_class(**resolved(recipe.config)))
    for parameter, values in network.named_parameters():
        if parameter.endswith(("attn_gate", "mlp_gate")):
            values.data.fill_(0.5)  # untrained, it would not look at images at all
    return network, processor


def save(make: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """Save a model as it lies on the hub: weights in parts with an index, settings of the pictures in a file of theirs."""
    import torch

    torch.manual_seed(0)
    network, processor = make()
    network.save_pretrained(folder, max_shard_size="200KB")
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings.pop("image_processor")
    file.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def save_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function that gives the folder of an untrained model of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            make = FAMILIES[name].make if name in FAMILIES else partial(build, name)
            made[name] = save(make, tmp_path_factory.mktemp("families") / name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def save_network() -> Callable[..., Path]:
    """Function that saves what a maker makes: `save_network(make, folder)`."""
    return save


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    """Name -> family."""
    return FAMILIES


@pytest.fixture(scope="session")
def windowed() -> Callable[[], tuple[Any, Any]]:
    """Maker of a Gemma 3 whose window is shorter than any prompt."""
    return lambda: gemma3(16)
