"""`probe pretrain`: make the weights of the embedded model again."""

from __future__ import annotations

from pathlib import Path

from vlm_probe.probes.cli.settings import Config


def pretrain(
    *,
    out: Path,
    seed: int = 0,
    config: Config = None,
) -> int:
    """Pretrain the embedded model `tiny` on perceptual questions, from nothing (hours on two cores).

    Args:
        out: Folder for the weights and the checkpoint; the same command goes on from that.
        seed: Seed of the scenes, the questions and the initial weights.
    """
    from vlm_probe.probes.cli.console import show
    from vlm_probe.probes.tiny.pretrain import Recipe
    from vlm_probe.probes.tiny.pretrain import pretrain as train

    show(str(train(out, Recipe(seed=seed))))
    return 0
