"""The recipe of the shipped weights: `pretrain(folder)` renders images, teaches the eyes and the whole model, in turns.

Run as `probe pretrain --out FOLDER`. Nothing it learns from is physics: images have labels of what is to be
seen, and the prompts of physics tasks come with all of their answers, so that only their format is learned.

How the shipped weights were made, and in what that differed from a run with the defaults, is in `weights/MODEL_CARD.md`.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vlm_probe.probes.allocation import keep_freed_memory
from vlm_probe.probes.tiny.architecture import build_model, build_processor
from vlm_probe.probes.tiny.packing import IGNORED, Encoder, answer_loss, pack, read, see
from vlm_probe.probes.tiny.perception import ReadOuts
from vlm_probe.probes.tiny.pictures import CHUNK, Picture, batches, cached_pictures, disguised, pixel_values, relit
from vlm_probe.probes.tiny.questions import (
    Exchange,
    caption,
    draw_ask,
    perception,
    physics_format,
    place,
    possible_asks,
    prompt_texts,
    seen_by,
)
from vlm_probe.probes.tiny.tokenizer import build_tokenizer
from vlm_probe.stimuli.errors import InvalidInput, reading
from vlm_probe.stimuli.output import claim, whole_file, write_json
from vlm_probe.stimuli.plain_json import dumps
from vlm_probe.stimuli.ranges import PROCESSES, SEED, check_ranges, ranged
from vlm_probe.stimuli.tasks import get_task

LOG, STATE, WEIGHTS, CACHE = "log.jsonl", "state.pt", "weights", "cache"

BATCH = 16
"""Images per process and step."""
HARD, LOOKED_AT = {"collision": 0.2, "balance": 0.2, "support": 0.55, "towers": 0.05}, 12
"""Shares of further images, of families that are harder to see, and how many of them each process looks at per step of the
later stages without reading about them, which costs a fifth."""
DISGUISED, FURTHER_DISGUISED = 0.15, 0.3
"""Shares of the images and of the further ones that are disguised after the first stage."""
WARM_UP = 200
LAST_RATE = 0.02
"""The learning rate ends at this share of its peak."""
TEXT_TOKENS = 192
"""Tokens of questions and answers per image."""
FORMAT_FROM, FORMAT_LATE = 0.08, 0.7
"""Shares of the way from the first mixture of questions to the last after which a few and then many format questions are asked."""
FEW, MANY = 0.12, 0.45
"""How many of the questions about scenes of physics tasks they are."""
CAPTIONS = 0.02
PLACES = (0.25, 0.1, 0.02)
"""How many of the questions ask for a place in the image, in the three parts of that way."""
LENGTHS = ((0.5, 0.3, 0.2), (0.25, 0.25, 0.5), (0.05, 0.15, 0.8))
"""Shares of short, bare and full prompts in the three parts of that way."""
LENGTHS_FROM = (0.3, 0.72)
SAVE_EVERY, EVALUATE_EVERY = 120.0, 240.0
"""Seconds between two checkpoints, and between two looks at the held-out images."""
HELD_OUT = 640


@dataclass(frozen=True)
class Stage:
    """A part of the training run, from a high learning rate to a low one.

    Attributes:
        steps: Optimiser steps.
        rate: Peak learning rate.
        whole: Whether the whole model is taught, or the vision tower alone.
        mixture: How far the mixture of questions is when it begins, from 0 (short prompts) to 1 (full ones, and many of physics).
        pictures: Numbers of the first image and of the one after the last, all processes together; multiples of `CHUNK`.
        minutes: End it after this time even if steps are left; the learning rate then follows the clock.
    """

    steps: int
    rate: float
    whole: bool = True
    mixture: float = 0.0
    pictures: tuple[int, int] = (0, 60_000)
    minutes: float = math.inf


@dataclass(frozen=True)
class Recipe:
    """How long to train on how much.

    Attributes:
        seed: Of the images, the questions and the initial weights.
        processes: Data-parallel processes of one thread each.
        stages: One after the other.
    """

    seed: int = ranged(0, SEED)
    processes: int = ranged(2, PROCESSES)
    stages: tuple[Stage, ...] = (
        Stage(4_696, 1.5e-3, whole=False),
        Stage(2_642, 1e-3),
        Stage(3_338, 8e-4, mixture=0.3),
        Stage(9_376, 1e-3, whole=False),
        Stage(4_067, 8e-4, mixture=0.3),
        Stage(756, 3e-4, mixture=0.75),
        Stage(2_829, 8e-4, mixture=0.3, pictures=(60_000, 120_000)),
        Stage(775, 4e-4, mixture=0.6, pictures=(60_000, 120_000)),
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def chunks(self) -> list[int]:
        """Numbers of the files that the images of all stages are in."""
        return sorted({chunk for stage in self.stages for chunk in _chunks(stage)})


def pretrain(out: Path, recipe: Recipe | None = None) -> Path:
    """Pretrain `tiny` from nothing, or go on from the checkpoint in `out`.

    Args:
        out: Receives `weights/` (hub layout), `log.jsonl`, `state.pt` and, under `cache/`, the rendered images.
        recipe: How long to train on how much; by default as long as the shipped weights were trained.

    Returns:
        The folder with the weights.

    Raises:
        OutputError: If `out` holds something else, cannot be written, or another process is writing to it.
    """
    recipe = recipe or Recipe()
    with claim(out, "pretraining") as output, tempfile.TemporaryDirectory() as folder:
        output.track(LOG, STATE)
        output.announce(WEIGHTS, CACHE)
        (out / CACHE).mkdir(exist_ok=True)
        if recipe.processes == 1:
            _work(0, recipe, out, "")
        else:
            spawn(_work, args=(recipe, out, f"file://{folder}/meet"), nprocs=recipe.processes)
    return out / WEIGHTS


def _chunks(stage: Stage) -> range:
    """Numbers of the files of a stage's images."""
    return range(stage.pictures[0] // CHUNK, stage.pictures[1] // CHUNK)


class _Worker:
    """One of the data-parallel processes: its share of the images, its copy of the model."""

    def __init__(self, rank: int, recipe: Recipe, out: Path) -> None:
        self.rank, self.recipe, self.out = rank, recipe, out
        torch.manual_seed(recipe.seed)
        tokenizer = build_tokenizer(prompt_texts())
        self.processor: LlavaProcessor = build_processor(tokenizer)
        self.model: LlavaForConditionalGeneration = build_model(tokenizer)
        self.read_outs = ReadOuts()
        self.encoder = Encoder(tokenizer)
        self.stage, self.step, self.elapsed, self.cpu = 0, 0, 0.0, 0.0
        self.steps = [0] * len(recipe.stages)
        self.rng = np.random.default_rng([recipe.seed, 7, rank])
        self.pictures: list[Picture] = []
        self.loaded = (0, 0)
        self.held_out = [] if rank else self._chunk(2, 0)[:HELD_OUT]

    def run(self) -> None:
        """All stages, from wherever the checkpoint is."""
        recipe, state = self.recipe, self.out / STATE
        kept: dict[str, Any] | None = None
        if state.exists():
            with reading(state, InvalidInput, "restore it, or delete it to begin from the start"):
                kept = self._resume(state)
        while self.stage < len(recipe.stages):
            self._train(recipe.stages[self.stage], kept)
            kept = None
            self.stage, self.step, self.elapsed = self.stage + 1, 0, 0.0
            self._save(None)
        self._save(None, "" if self.rank else self._digest())

    def _resume(self, state: Path) -> dict[str, Any]:
        """Take over a checkpoint, and give what is in it."""
        kept: dict[str, Any] = torch.load(state, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.read_outs.load_state_dict(kept["read_outs"])
        self.stage, self.step, self.elapsed, self.cpu = (kept[k] for k in ("stage", "step", "elapsed", "cpu"))
        self.steps = kept["steps"]
        self.rng = np.random.default_rng([self.recipe.seed, 7, self.rank, self.stage, self.step])
        return kept

    def _load(self, stage: Stage) -> None:
        """This process's share of the stage's images: those of every other file, so that none is seen by two."""
        if stage.pictures != self.loaded:
            self.pictures = []  # those of the stage before, which may fill half of the memory
            chunks = _chunks(stage)[self.rank :: self.recipe.processes]
            self.pictures, self.loaded = [p for c in chunks for p in self._chunk(1, c)], stage.pictures

    def _chunk(self, stream: int, number: int) -> list[Picture]:
        return cached_pictures(self.out / CACHE, (self.recipe.seed, stream), number, self.processor)

    def _train(self, stage: Stage, kept: dict[str, Any] | None) -> None:
        self._load(stage)
        parameters = [p for m in (self.model, self.read_outs) for p in m.parameters()]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=stage.rate,
            betas=(0.9, 0.98),
        )
        if kept is not None and kept["optimizer"] is not None:
            optimizer.load_state_dict(kept["optimizer"])
        supply, further = batches(self.rng, self.pictures, BATCH), self._further()
        saved = told = asked = self.elapsed
        last, last_cpu = time.time(), time.process_time()
        running: dict[str, float] = {}
        self.model.train()
        while True:
            # Whichever comes first ends the stage; all processes follow the clock of the first.
            progress = max(self.step / stage.steps, self.elapsed / (60 * stage.minutes))
            if progress >= 1:
                break
            warm = min(1.0, (self.step + 1) / WARM_UP)
            share = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * warm * share
            loss, facts = self._loss(
                next(supply),
                next(further) if stage.whole else [],
                stage.mixture + (1 - stage.mixture) * progress,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            now, now_cpu = time.time(), time.process_time()
            spent = self._share(parameters, now - last, now_cpu - last_cpu)
            last, last_cpu = now, now_cpu
            self.elapsed, self.cpu = self.elapsed + spent[0], self.cpu + spent[1]
            torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
            optimizer.step()
            self.step += 1
            self.steps[self.stage] = self.step
            for name, value in facts.items():
                running[name] = 0.95 * running.get(name, value) + 0.05 * value
            if self.rank == 0 and self.elapsed - told > 30:
                told = self.elapsed
                self._tell({name: round(value, 3) for name, value in running.items()})
            if self.rank == 0 and self.elapsed - saved > SAVE_EVERY:
                saved = self.elapsed
                self._save(optimizer)
            if self.rank == 0 and stage.whole and self.elapsed - asked > EVALUATE_EVERY:
                asked = self.elapsed
                self._tell({"held_out": self._evaluate()})
        if self.rank == 0 and stage.whole:
            self._tell({"held_out": self._evaluate()})

    def _further(self) -> Iterator[list[Picture]]:
        """Endless batches of images that are only looked at."""
        families = [get_task(p.task).family for p in self.pictures]
        supplies = {
            name: batches(self.rng, [p for p, f in zip(self.pictures, families, strict=True) if f == name], 1)
            for name in HARD
        }
        while True:
            names = self.rng.choice(list(HARD), LOOKED_AT, p=list(HARD.values()))
            yield [next(supplies[name])[0] for name in names]

    def _loss(
        self, pictures: list[Picture], further: list[Picture], progress: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        seen = [self._disguised(p, pictures, DISGUISED) for p in pictures]
        seen += [self._disguised(p, pictures, FURTHER_DISGUISED) for p in further]
        features = see(self.model, relit(self.rng, pixel_values(seen)))
        sight, facts = self.read_outs.see(features, seen)
        facts["sight"] = float(sight.detach())
        if not self.recipe.stages[self.stage].whole:
            return sight, facts
        asks = {id(p): possible_asks(p.task, p.scene) for p in pictures}
        due: dict[int, list[Exchange]] = {id(p): [] for p in pictures}

        def ask(picture: Picture) -> Exchange:
            if not due[id(picture)]:
                due[id(picture)] = self._ask(picture, asks[id(picture)], progress)
            exchange = due[id(picture)].pop()
            return replace(exchange, prompt="\n" + exchange.prompt) if self.rng.random() < 0.1 else exchange

        questions = pack(pictures, ask, self.encoder, TEXT_TOKENS)
        middle, final = read(self.model, features[: len(pictures)], questions, self.encoder)
        reply = answer_loss(self.model, final, questions)
        colour = self.encoder.colours[questions.ids]
        word = (colour >= 0) & (questions.segments > 0)
        row = word.nonzero()[:, 0]
        found = self.read_outs.read(middle[word], row, colour[word], pictures)
        facts |= {"reply": float(reply.detach()), "found": float(found.detach())}
        return reply + 0.1 * sight + 0.1 * found, facts

    def _disguised(self, picture: Picture, others: list[Picture], share: float) -> Picture:
        if self.stage == 0 or self.rng.random() >= share:
            return picture
        return disguised(self.rng, picture, others[self.rng.integers(len(others))])

    def _ask(self, picture: Picture, asks: list[str], progress: float) -> list[Exchange]:
        """What is asked next about an image: one question, or one about physics with each of its answers."""
        rng, part = self.rng, sum(progress > edge for edge in LENGTHS_FROM)
        task = get_task(picture.task)
        if task.kind != "grounding":
            formats = MANY if progress > FORMAT_LATE else FEW if progress > FORMAT_FROM else 0.0
            if not asks or rng.random() < formats:
                return physics_format(rng, task, picture.scene)
        if rng.random() < (PLACES[part] if asks else 0.5) and (placed := place(rng, picture)):
            return [placed]
        if rng.random() < CAPTIONS:
            return [caption(rng, picture.scene)]
        if asks:
            return [perception(rng, picture, asks, LENGTHS[part])]
        return physics_format(rng, task, picture.scene)

    def _share(self, parameters: list[torch.nn.Parameter], seconds: float, cpu: float) -> tuple[float, float]:
        """Average the gradients over the processes. Returns mean wall-clock and total CPU seconds of the step."""
        world = self.recipe.processes
        if world == 1:
            return seconds, cpu
        graded = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in graded if p.grad is not None] + [torch.tensor([seconds, cpu])])
        dist.all_reduce(flat)
        flat /= world
        start = 0
        for p in graded:
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        return float(flat[-2]), float(flat[-1]) * world

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Share of right answers to full prompts about held-out images, each token read off the right ones before it."""
        self.model.eval()
        rng = np.random.default_rng(5)
        right: dict[str, list[bool]] = {}
        pictures = [p for p in self.held_out if get_task(p.task).kind == "grounding"]
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            asked: dict[int, list[Exchange]] = {id(p): [] for p in batch}

            def ask(picture: Picture, asked: dict[int, list[Exchange]] = asked) -> Exchange:
                asks = possible_asks(picture.task, picture.scene)
                asked[id(picture)].append(perception(rng, picture, asks, (0.0, 0.0, 1.0), draw_ask(rng, asks)))
                return asked[id(picture)][-1]

            questions = pack(batch, ask, self.encoder, TEXT_TOKENS)
            _, final = read(self.model, see(self.model, pixel_values(batch)), questions, self.encoder)
            said = self.model.lm_head(final).argmax(-1)
            for row, picture in enumerate(batch):
                task = seen_by(picture.task)
                for number in range(1, int(questions.segments[row].max()) + 1):
                    exchange = asked[id(picture)][number - 1]
                    answered = (questions.segments[row] == number) & (questions.labels[row] != IGNORED)
                    reply = self.processor.tokenizer.decode(said[row][answered].tolist(), skip_special_tokens=True)
                    assert exchange.question is not None
                    value = exchange.question.parse(reply).value
                    success = value is not None and task.score(picture.scene, exchange.question, value).success
                    right.setdefault(exchange.kind, []).append(success)
        self.model.train()
        return {kind: round(float(np.mean(values)), 3) for kind, values in sorted(right.items())}

    def _tell(self, facts: dict[str, Any]) -> None:
        line = dumps({"stage": self.stage, "step": self.step, "minutes": round(self.elapsed / 60, 2), **facts})
        sys.stderr.write(line + "\n")
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _digest(self) -> str:
        """SHA-256 of all images that are learned from: pixels and scenes, in order."""
        total = hashlib.sha256()
        for chunk in self.recipe.chunks:
            for picture in self._chunk(1, chunk):
                total.update(picture.pixels.tobytes() + picture.scene.to_json().encode())
        return total.hexdigest()

    def _save(self, optimizer: torch.optim.Optimizer | None, data: str = "") -> None:
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "read_outs": self.read_outs.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
            "stage": self.stage,
            "step": self.step,
            "elapsed": self.elapsed,
            "cpu": self.cpu,
            "steps": self.steps,
        }
        with whole_file(self.out / STATE) as partial:
            torch.save(state, partial)
        save_weights(self.model, self.processor, self.out / WEIGHTS)
        facts = {
            "recipe": {
                **asdict(self.recipe),
                "pictures": CHUNK * len(self.recipe.chunks),
                # The clock's limit belongs to a machine; and JSON has no infinity.
                "stages": [{k: v for k, v in asdict(s).items() if k != "minutes"} for s in self.recipe.stages],
            },
            "steps": self.steps,
            "batch": BATCH * self.recipe.processes,
            "text_tokens": TEXT_TOKENS,
            "cpu_seconds": round(self.cpu),
            "data_sha256": data,
        }
        write_json(self.out / WEIGHTS / "training.json", facts, indent=1)


def save_weights(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write model (float16) and processor in the hub layout.

    Args:
        model: In any precision.
        processor: That ships with it.
        folder: Made if it is not there.
    """
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.half().save_pretrained(folder)
    processor.save_pretrained(folder)


def _work(rank: int, recipe: Recipe, out: Path, meeting: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    if recipe.processes > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=recipe.processes)
    _Worker(rank, recipe, out).run()
    if recipe.processes > 1:
        dist.destroy_process_group()
