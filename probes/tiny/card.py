"""The model card of `tiny`, written from what was measured."""

from __future__ import annotations

import math
from typing import Any

from vlm_probe.probes.tiny.architecture import DECODER_LAYERS, HEADS, HIDDEN, PIXELS, TOKENS, VISION_LAYERS
from vlm_probe.probes.tiny.tokenizer import VOCABULARY
from vlm_probe.stimuli.shifts import LEVELS

GOALS = {"plain": 0.95, "visual:1": 0.95, "visual:2": 0.90}
"""What every question is to reach: unshifted, and with all visual shifts at once at levels 1 and 2."""
PARSED = 0.97
"""Share of the replies to every task that are to be in the required format."""

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vision-language, intuitive-physics, synthetic]
---

# tiny

A vision-language model of {parameters:.2f} million parameters that sees towers, planks, balls and structures, and was taught no
physics. It is the embedded model of `probe`: real enough that everything that is done to a large model can be done to it on one
CPU core.

- Architecture: LLaVA (`LlavaForConditionalGeneration`): SigLIP tower of {vision_layers} layers, projector, Llama decoder of
  {decoder_layers} layers; width {hidden}, {heads} heads, tied embeddings. Pictures are resized to {pixels} x {pixels}, bilinearly:
  {tokens} visual tokens.
- Tokenizer: byte-level BPE of {vocabulary} tokens; words of the prompts and common English are whole, digits are single.
- Weights: float16. Licence: Apache-2.0.

## Data

Pictures are rendered with PyBullet's TinyRenderer at 224 pixels: {pictures:,} scenes, a quarter of each family, six in ten from the
samplers of the grounding tasks and the others from those of the physics tasks. A fifth are unshifted, two fifths of the others
are shifted at level 1 and three fifths at level 2: half of them by all visual shifts at once (camera, light, texture, colour,
background, distractors), half by each with probability one half. Level 3 was never seen. In training
each picture also came mirrored, in slightly varied brightness, contrast and tint, and some in a disguise of other surfaces and
shadows. Labels say what is to be seen: where things are, and the answers to the grounding tasks' questions. **No outcome, margin
or solution of a physics task was used.** Real prompts of the physics tasks came with every answer of their grammar in random
order (of numbers, with one drawn uniformly), so that the model answers in the required format and was taught nothing else about
them.

SHA-256 of the scenes and pixels: `{data}`.

## Training

From nothing, by `vlm_probe.probes.tiny.pretrain`: seed {seed}, {processes} processes of one thread, {cpu_minutes:.0f} CPU-minutes
without the rendering, in {stages} stages, each from a high learning rate to a low one: {steps}. A step is {batch} pictures; the eyes
learn what each patch shows, and the whole model gets as many questions on each picture as fit into {text_tokens} tokens.
{note}
## Perception

Greedy answers to the questions of the grounding tasks with their full prompts, all paraphrases and option orders, over
pictures of unseen scenes (seed {eval_seed}; n = {per_ask} per number), and the share in the required format. A distance may be off by
a tenth of a block, or a twentieth of the plank. Shifted are all six visual shifts at once; of level 3 pretraining saw nothing.
Questions with a star are not in the designed sets.

| question | unshifted | level 1 | level 2 | level 3 | by paraphrase, unshifted | in format |
|---|---|---|---|---|---|---|
{perception}

{missed} (The standard error of such a number is {errors[0]:.3f} at .95 and {errors[1]:.3f} at .90.)

Each shift alone (designed questions, {families} together):

| shift | level 1 | level 2 | level 3 |
|---|---|---|---|
{single}

## Format

Share of replies that the question's own parser accepts:

| task | direct | think |
|---|---|---|
{parse}

## Judgements before adaptation

The base is not neutral, although it was never told what happens. It was asked about scenes and foils of the designed sets;
chance is the mean of one over the number of options. AUC is of the log-odds of each answer against the truth, averaged over the answers: .5 is no
information. Report this bias beside any result of adapting the model.

| task | n | accuracy | chance | best constant | AUC | answers |
|---|---|---|---|---|---|---|
{before}

{not_near}

## Limits

It knows six colours, the shapes and layouts of the four families, and prompts like those of this package; nothing else was
measured. Several pictures, several turns and system turns are accepted, but were not taught.
Numbers are for one seed of pretraining.
"""


def model_card(facts: dict[str, Any], training: dict[str, Any]) -> str:
    """The card as markdown.

    Args:
        facts: What `vlm_probe.probes.tiny.evaluate` measured.
        training: What `vlm_probe.probes.tiny.pretrain` recorded in `training.json`.
    """
    recipe = training["recipe"]
    perception, before, single = facts["perception"], facts["before_adaptation"], facts["single_shifts"]
    plain = perception["plain"]
    per_ask = {r["n"] for found in plain.values() for r in found.values()}
    shifts = list(dict.fromkeys(name.split(":")[0] for found in single.values() for name in found))
    note = training.get("note", "")
    return _CARD.format(
        parameters=facts["parameters"] / 1e6,
        vision_layers=VISION_LAYERS,
        decoder_layers=DECODER_LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        pixels=PIXELS,
        tokens=TOKENS,
        vocabulary=VOCABULARY,
        pictures=recipe["pictures"],
        data=training["data_sha256"],
        seed=recipe["seed"],
        processes=recipe["processes"],
        cpu_minutes=training["cpu_seconds"] / 60,
        stages=len(training["steps"]),
        steps=", ".join(
            f"{steps:,} steps of the {'whole model' if stage['whole'] else 'eyes alone'}"
            for steps, stage in zip(training["steps"], recipe["stages"], strict=True)
        ),
        batch=training["batch"],
        text_tokens=training["text_tokens"],
        note=f"\n{note}\n" if note else "",
        eval_seed=facts["seed"],
        per_ask=", ".join(map(str, sorted(per_ask))),
        perception="\n".join(
            _question(f"{family}: {ask}", ask in facts["extra"].get(family, ()), perception, family, ask)
            for family, found in plain.items()
            for ask in found
        ),
        missed=_missed(facts),
        errors=[math.sqrt(rate * (1 - rate) / min(per_ask)) for rate in (0.95, 0.90)],
        families=", ".join(single),
        single="\n".join(
            f"| {shift} | "
            + " | ".join(_mean([f[f"{shift}:{level}"] for f in single.values()]) for level in LEVELS)
            + " |"
            for shift in shifts
        ),
        parse="\n".join(
            f"| {task} | {rates['direct']:.3f} | {rates['think']:.3f} |" for task, rates in facts["parse_rates"].items()
        ),
        before="\n".join(
            f"| {task} | {r['n']} | {r['accuracy']:.3f} | {r['chance']:.3f} | {r['best_constant']:.3f} | {r['auc']:.3f} "
            f"| {', '.join(f'{word} {share:.2f}' for word, share in r['words'].items())} |"
            for task, r in before.items()
        ),
        not_near=_list(
            "More than ten points from chance: ",
            [task for task, r in before.items() if abs(r["accuracy"] - r["chance"]) > 0.1],
            "All are within ten points of chance.",
        ),
    )


def shortfalls(facts: dict[str, Any]) -> list[str]:
    """What misses its goal: questions by family and shift, tasks by style."""
    missed = [
        f"{family} {ask} ({shifts}: {r['accuracy']:.3f})"
        for shifts, families in facts["perception"].items()
        for family, found in families.items()
        for ask, r in found.items()
        if r["accuracy"] < GOALS.get(shifts, 0.0)
    ]
    return missed + [
        f"{task} {style} (in format: {rate:.3f})"
        for task, rates in facts["parse_rates"].items()
        for style, rate in rates.items()
        if rate < PARSED
    ]


def _question(label: str, extra: bool, perception: dict[str, Any], family: str, ask: str) -> str:
    found = [of_families[family][ask] for of_families in perception.values()]
    rates = " | ".join(f"{r['accuracy']:.3f}" for r in found)
    paraphrases = ", ".join(f"{value:.2f}" for value in found[0]["by_paraphrase"])
    parsed = min(r["parsed"] for r in found)
    return f"| {label}{' *' if extra else ''} | {rates} | {paraphrases} | {parsed:.3f} |"


def _missed(facts: dict[str, Any]) -> str:
    goal = f"The goal is {GOALS['plain']:.2f} for every question ({GOALS['visual:2']:.2f} at level 2) and {PARSED:.2f} in format. "
    return goal + _list("These miss it: ", shortfalls(facts), "All reach it.")


def _list(start: str, names: list[str], none: str) -> str:
    return f"{start}{', '.join(names)}." if names else none


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}"
