"""Fixtures that several test files share: small stimulus sets, and small untrained VLMs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: the tests run on machines whose cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set

# How long an example takes says something about the machine alone, which others may be using.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>")
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<' + m['role'] + '>' }}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Processes that tests start can be interrupted: under nohup and in the background of a script they would inherit that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def stability(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """24 items of towers-stability."""
    return make_set("towers-stability", 24, 0, tmp_path_factory.mktemp("sets") / "stability", size=64)


@pytest.fixture(scope="session")
def topblock(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """8 items of towers-topblock."""
    return make_set("towers-topblock", 8, 0, tmp_path_factory.mktemp("sets") / "topblock", size=64)


@pytest.fixture(scope="session")
def sideblock(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """4 items of towers-sideblock."""
    return make_set("towers-sideblock", 4, 0, tmp_path_factory.mktemp("sets") / "sideblock", size=64)


@pytest.fixture(scope="session")
def grounding(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """24 items of towers-grounding: several answer grammars in one set."""
    return make_set("towers-grounding", 24, 0, tmp_path_factory.mktemp("sets") / "grounding", size=64)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained LLaVA of 0.1 M parameters that reads and writes single bytes."""
    return save_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """Function that makes such a model: `save_model(folder, hidden=48, template=TEMPLATE)`."""
    return save_llava


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """Function that makes an adapter as if after training: `save_adapter(base, folder, trained=True, targets=...)`."""
    return make_adapter


def make_adapter(
    base: Path, folder: Path, *, trained: bool = True, targets: str = r".*language_model.*\.[qv]_proj"
) -> Path:
    """Make such an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if trained and ("lora_B" in name or "lora_embedding_" in name):
                tensor.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def save_llava(folder: Path, *, hidden: int = 48, template: str | None = TEMPLATE) -> Path:
    """Make such a model."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate([*SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pixels, patch = 32, 8
    images = SiglipImageProcessor(size={"height": pixels, "width": pixels}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=template,
        image_token="<image>",
    )
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Wide initial weights, so that what the untrained model says depends on what it sees.
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=pixels,
        patch_size=patch,
        vision_use_head=False,
        initializer_range=0.2,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.15,
        **ends,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=(pixels // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **ends,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # What is said follows from what was seen rather than from the last word.
        model.model.language_model.embed_tokens.weight.mul_(0.3)
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(4)
            layer.self_attn.q_proj.weight.mul_(2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
