"""The backend on untrained models of other architectures: what differs between them must not differ in the answers.

Qwen2.5-VL has two-dimensional positions, SmolVLM cuts pictures into tiles, PaliGemma has no chat template and counts
positions from 1, and Gemma 3 looks back through a window in most of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.models import Generation, Trial
from probes.models.loading import load_model
from stimuli.dataset import StimulusSet

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
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


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


def qwen() -> tuple[Any, Any]:
    import transformers as t

    special = ("<turn>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    processor = t.Qwen2_5_VLProcessor(
        image_processor=t.Qwen2VLImageProcessor(
            patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 9 * 28 * 28}
        ),
        tokenizer=tokenizer_of(*special),
        video_processor=t.Qwen2VLVideoProcessor(),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    eye = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    config = t.Qwen2_5_VLConfig(
        vision_config=eye | {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        text_config=SMALL | {"vocab_size": len(processor.tokenizer), "rope_parameters": rope, "bos_token_id": None},
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
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
        text_config=SMALL | {"model_type": "llama", "vocab_size": len(processor.tokenizer), "bos_token_id": None},
        vision_config=EYE,
        scale_factor=2,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = t.SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    return model, processor


def paligemma() -> tuple[Any, Any]:
    import transformers as t

    pictures = t.SiglipImageProcessor(size={"height": 32, "width": 32})
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


def gemma3(window: int) -> tuple[Any, Any]:
    import transformers as t

    named = {"image_token": "<soft>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessor(size={"height": 32, "width": 32}, image_seq_length=4),
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
    model.generation_config.eos_token_id = [1, 4]
    return model, processor


@pytest.mark.parametrize(
    ("make", "end", "tree"),
    [
        pytest.param(qwen, "<eos>", True, id="qwen2.5-vl"),
        pytest.param(smolvlm, "<end_of_utterance>", True, id="smolvlm"),
        pytest.param(paligemma, "<eos>", True, id="paligemma"),
        pytest.param(lambda: gemma3(1024), "<end>", True, id="gemma3"),
        pytest.param(lambda: gemma3(16), "<end>", None, id="gemma3, prompt longer than the window"),
    ],
)
def test_answers_do_not_depend_on_batches_nor_on_the_tree(
    make: Callable[[], tuple[Any, Any]], end: str, tree: bool | None, grounding: StimulusSet, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, processor = make()
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model: Any = load_model(str(tmp_path))
    trials = [Trial(item, grounding.image(item)) for item in grounding.items[:24:4]]
    settings = Generation(max_new_tokens=6)
    assert model.generate(trials, settings) == [model.generate([trial], settings)[0] for trial in trials]
    scores = model.score_options(trials)
    assert model._scorer._use_tree is tree
    few = [model._prompter.replies(trial)[:2] for trial in trials]
    for row, trial in zip(scores, trials, strict=True):
        assert np.abs(row - model.score_options([trial])[0]).max() < 1e-4
    with torch.inference_mode():
        generated = model._scorer._generated(model._inputs(trials), few)
    for row, expected in zip(scores, generated, strict=True):
        assert np.abs(row[:2] - expected).max() < 1e-4
    assert model._prompter._tokenizer.decode(few[0][0][-1:]) == end
