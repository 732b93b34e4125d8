"""Small untrained models of the families that are served: real architectures and processors, in the hub's file layout.

What differs between them: pictures cut into tiles (LLaVA-NeXT, LLaVA-OneVision, SmolVLM, InternVL) or patched at any size
(Qwen), positions in two dimensions (Qwen), pictures fed into several layers (Qwen3-VL), no chat template and positions
from 1 (PaliGemma), a window of attention (Gemma 3).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
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
            made[name] = save(FAMILIES[name].make, tmp_path_factory.mktemp("families") / name)
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
