"""The model card of `tiny`, written from what was measured."""

from __future__ import annotations

from typing import Any

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vision-language, intuitive-physics, synthetic]
---

# tiny

A vision-language model of {parameters:.2f} million parameters that sees block towers and was taught no physics. It is the
embedded model of `probe`: real enough that everything that is done to a large model can be done to it on one CPU core.

- Architecture: LLaVA (`LlavaForConditionalGeneration`): SigLIP tower of 4 layers, projector, Llama decoder of 5
  layers; width 128, 4 heads, tied embeddings. Pictures are resized to 48 x 48, bilinearly: 36 visual tokens.
- Tokenizer: byte-level BPE of 2048 tokens; words of the prompts and common English are whole, digits are single.
- Weights: float16. Licence: Apache-2.0.

## Data

Pictures are rendered with PyBullet's TinyRenderer at 224 pixels: {pictures:,} scenes (half of them towers of 1 to 5
blocks without regard to physics, a quarter loose blocks on the floor, a quarter scenes of the samplers of the physics
tasks), each also mirrored. Labels say what is to be seen: colours, numbers, places. **No outcome, margin or solution of
a physics task was used.** Real prompts of the physics tasks came with answers drawn uniformly from their grammar, so
that the model answers in the required format and was taught nothing else about them.

## Training

From nothing, by `probes.tiny.pretrain`: seed {seed}, {processes} processes of one thread, {cpu_minutes:.0f} CPU-minutes
without the rendering: {eye_steps:,} steps of {batch} pictures on what each patch shows, then {steps:,} steps of the
whole model, with as many questions on each picture as fit into 192 tokens.

{note}

## Perception

Greedy answers to the questions of `towers-grounding` with their full prompts, all paraphrases and option orders, over
pictures of unseen scenes (seed {eval_seed}); a distance may be off by one centimetre (a tenth of a block).

| question | n | accuracy | by paraphrase | in format |
|---|---|---|---|---|
{perception}

## Format

Share of replies that the question's own parser accepts:

| task | direct | think |
|---|---|---|
{parse}

## Stability before adaptation

The base is not neutral, although it was never told what falls. It was asked about {towers} towers of the
designed set, half of which stand. AUC is of the log-odds for standing against the truth: .5 is chance, below .5 is
anti-correlated. Report this bias beside any result of adapting the model.

| question | says "yes" | mean P(yes) | accuracy | AUC |
|---|---|---|---|---|
{stability}

AUC of both wordings together: {auc}.

## Limits

It knows six colours, cubes of one size, one camera, and prompts like those of this package; nothing else was
measured. Several pictures, several turns and system turns are accepted, but were not taught.
Numbers are for one seed of pretraining.
"""


def model_card(facts: dict[str, Any], training: dict[str, Any]) -> str:
    """The card as markdown.

    Args:
        facts: What `probes.tiny.evaluate` measured.
        training: What `probes.tiny.pretrain` recorded in `training.json`.
    """
    recipe = training["recipe"]
    before = facts["stability_before_adaptation"]
    return _CARD.format(
        parameters=facts["parameters"] / 1e6,
        pictures=recipe["pictures"] * recipe["processes"],
        seed=recipe["seed"],
        processes=recipe["processes"],
        cpu_minutes=training["cpu_seconds"] / 60,
        eye_steps=training["steps"][0],
        steps=training["steps"][1],
        batch=training["batch"],
        note=training.get("note", ""),
        eval_seed=facts["seed"],
        perception="\n".join(
            f"| {name} | {r['n']} | {r['accuracy']:.3f} | {', '.join(f'{v:.3f}' for v in r['by_paraphrase'])} "
            f"| {r['parsed']:.3f} |"
            for name, r in facts["perception"].items()
        ),
        parse="\n".join(
            f"| {name} | {r['direct']:.3f} | {r['think']:.3f} |" for name, r in facts["parse_rates"].items()
        ),
        towers=before["towers"],
        stability="\n".join(
            f"| {label} | {before[k]['share_yes']:.3f} | {before[k]['mean_p_yes']:.3f} | {before[k]['accuracy']:.3f} "
            f"| {before[k]['auc']:.3f} |"
            for k, label in (("stay", "will it stay up?"), ("fall", "will it fall?"))
        ),
        auc=f"{before['auc_both_polarities']:.3f}",
    )
