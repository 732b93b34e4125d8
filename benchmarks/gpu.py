"""What a model of 7 billion weights takes on a GPU: memory and time of asking and of training, next to what was estimated.

No weights are downloaded: an untrained Qwen2.5-VL of the published shape is made (16.6 GB in bfloat16, on the disk of
`--folder`), with a tokenizer that cuts our prompts about as finely as the real one. What it says is noise, and its replies
never end before their limit, so that times are upper bounds; memory and arithmetic are those of the real model.

    python benchmarks/gpu.py [--shape 7b|small] [-n 320] [--samples 256] [--folder DIR] [--only ask-bfloat16,train-grpo]

Baselines: for asking, the estimate of `probe doctor --model` (memory, seconds per item), and a plain loop of transformers that
generates for one item at a time; for scoring options, one plain forward pass over the same batch; for training, the table of
docs/slurm.md (seconds per sample). Every step runs in a process of its own, so that its peak of memory is its own.
Prints a line per step, and one JSON object at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

TASK = "towers-topblock"
ASKING: dict[str, dict[str, Any]] = {"ask-bfloat16": {"dtype": "bfloat16"}, "ask-4bit": {"load_in_4bit": True}}
METHODS = ("grpo", "ppo", "sft", "rloo")
PIXELS = 224
ALONE = 24
"""Items that the plain loop is asked."""

TEXT = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "mrope_section": [16, 24, 24],
    },
    "small": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "mrope_section": [2, 3, 3],
    },
}
VISION = {
    "7b": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
    "small": {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
}
SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(prompts: list[str]) -> Any:
    """Byte pairs learned from these prompts: about a token per word, as the tokenizers of large models give for English."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<|endoftext|>", *SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(prompts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def make_model(shape: str, prompts: list[str], folder: Path) -> None:
    """Save an untrained model of a shape, as it lies on the hub.

    Args:
        shape: Key of `TEXT`.
        prompts: What the tokenizer is made for.
        folder: Where to.
    """
    import transformers as t

    processor = t.Qwen2_5_VLProcessor(
        image_processor=t.Qwen2VLImageProcessor(
            patch_size=14, merge_size=2, size={"shortest_edge": 3136, "longest_edge": 12845056}
        ),
        tokenizer=make_tokenizer(prompts),
        video_processor=t.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    ids = {name: processor.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = dict(TEXT[shape])
    rope = {"rope_type": "default", "mrope_section": text.pop("mrope_section"), "rope_theta": 1e6}
    text |= {"rope_parameters": rope, "max_position_embeddings": 32768, "pad_token_id": 0}
    text |= {"eos_token_id": ids["<|im_end|>"], "bos_token_id": None}
    blocks = [7, 15, 23, 31] if shape == "7b" else [1]
    config = t.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION[shape] | {"fullatt_block_indexes": blocks, "window_size": 112, "patch_size": 14},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = t.Qwen2_5_VLForConditionalGeneration(config)
    network.save_pretrained(folder, max_shard_size="4GB")
    processor.save_pretrained(folder)
    # As in the cache of the hub: files are links to what they contain, by its hash, which is then not computed again.
    blobs = folder / "blobs"
    blobs.mkdir()
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        for file, name in zip(files, pool.map(sha256, files), strict=True):
            file.rename(blobs / name)
            file.symlink_to(Path(blobs.name) / name)


def sha256(file: Path) -> str:
    """The hash of a file's contents."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def clocked(work: Callable[[], Any]) -> float:
    """Seconds of a call, until the GPU has finished."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak() -> dict[str, float]:
    """GB that torch has held at most in this process, in use and reserved, without CUDA's own half a gigabyte; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "in_use_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def ask(settings: dict[str, Any], model: str, n: int, folder: Path) -> dict[str, Any]:
    """Memory and time of asking, next to the estimate and a plain loop."""
    from vlm_probe.probes.models import Generation, Trial
    from vlm_probe.probes.models.footprint import ITEMS, footprint
    from vlm_probe.probes.models.huggingface import HuggingFaceModel
    from vlm_probe.probes.models.loading import load_model
    from vlm_probe.probes.run import RunConfig, run
    from vlm_probe.stimuli.generate import make_set

    estimate = footprint(model, **settings)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stimuli = make_set(TASK, n, 0, folder / "set", size=PIXELS)
    start = time.perf_counter()
    loaded = load_model(model, **settings)
    loading = time.perf_counter() - start
    assert isinstance(loaded, HuggingFaceModel)
    trials = [Trial(item, stimuli.image(item)) for item in stimuli.items]
    loaded.generate(trials[: loaded.batch_size], Generation())  # the first call of all is slower

    def whole(readout: str) -> float:
        config = RunConfig(model, "s", readout, **settings)  # type: ignore[arg-type]
        return clocked(lambda: run(config, stimuli, folder / readout, model=loaded)) / n

    generated, scored = whole("generate"), whole("options")
    alone = clocked(lambda: [loaded.generate([trial], Generation()) for trial in trials[:ALONE]]) / ALONE
    inputs = loaded._inputs(trials[: loaded.batch_size])
    candidates = [loaded._prompter.replies(trial) for trial in trials[: loaded.batch_size]]

    def plain() -> None:
        with torch.inference_mode():
            loaded._model(**inputs)

    rounds = [(clocked(lambda: loaded._scorer.score(inputs, candidates)), clocked(plain)) for _ in range(8)][2:]
    return peak() | {
        "estimate_gb": estimate.needed_bytes / 1e9,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "batch_size": loaded.batch_size,
        "loading_s": loading,
        "estimate_s_per_item": estimate.seconds / ITEMS,
        "generate_s_per_item": generated,
        "options_s_per_item": scored,
        "alone_s_per_item": alone,
        "options": max(map(len, candidates)),
        "options_over_forward": statistics.median(score / forward for score, forward in rounds),
    }


def learn(method: str, model: str, samples: int, folder: Path) -> dict[str, Any]:
    """Memory and time of training with the preset for such a model."""
    from vlm_probe.finetune.config import make_config
    from vlm_probe.finetune.data import training_set
    from vlm_probe.finetune.train import train

    given = {
        "model": model,
        "tasks": (TASK,),
        "method": method,
        "items": 128,
        "size": PIXELS,
        "budget": f"samples={samples}",
        "save_every": 10**9,
    }
    config = make_config(given, "80gb")
    training_set(config)
    clock: list[float] = []
    start = time.perf_counter()
    result = train(config, folder / "run", progress=lambda done, total: clock.append(time.perf_counter()))
    steps = result["budget"]["steps"]
    # Without loading, and without the first rollout or step, which is slower.
    first = steps // max(1, samples // (config.rollout if config.is_rl else config.batch))
    ends = clock[-steps:]
    rest = (ends[-1] - ends[first - 1]) / (samples * (steps - first) / steps)
    rows = result["curves"][1:] or result["curves"]
    return peak() | {
        "samples": result["budget"]["samples"],
        "s_per_sample": rest,
        "before_s": ends[0] - start,
        "tokens_per_sample": result["budget"]["tokens"] / result["budget"]["samples"],
        "simulator_s_per_rollout": statistics.median(row.get("simulator_s", 0.0) for row in rows),
    }


def measure(step: str, model: str, n: int, samples: int) -> dict[str, Any]:
    """One step, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if step in ASKING:
            return ask(ASKING[step], model, n, Path(folder))
        return learn(step.removeprefix("train-"), model, samples, Path(folder))


def main() -> None:
    """Read the arguments, make the model, measure step by step."""
    steps = [*ASKING, *(f"train-{method}" for method in METHODS)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*TEXT], default="7b")
    parser.add_argument("-n", type=int, default=320, help="items that are asked")
    parser.add_argument("--samples", type=int, default=256, help="of a training: two rollouts at least")
    parser.add_argument("--folder", type=Path, help="where the model is kept; by default it is made anew")
    parser.add_argument("--only", default=",".join(steps))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measure(given.step, str(given.folder), given.n, given.samples)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)) / f"untrained-{given.shape}"
        if not folder.exists():
            from vlm_probe.stimuli.generate import make_set

            items = make_set(TASK, 60, 0, Path(scratch) / "prompts", size=64).items
            partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
            make_model(given.shape, [item.question.prompt for item in items], partial)
            partial.rename(folder)
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the processor"
        print(f"Qwen2.5-VL, untrained, shape {given.shape}; {name}; torch {torch.__version__}", flush=True)
        found: dict[str, Any] = {}
        for step in filter(None, given.only.split(",")):
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
            command += ["-n", str(given.n), "--samples", str(given.samples)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                found[step] = {"failed": done.stderr.strip().splitlines()[-1:]}
                print(f"{step:14} failed:\n{done.stderr[-3000:]}", flush=True)
                continue
            found[step] = json.loads(done.stdout.splitlines()[-1])
            shown = "  ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in found[step].items()
            )
            print(f"{step:14} {shown}", flush=True)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
