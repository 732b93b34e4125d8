"""Linear read-outs that teach the vision tower what each patch shows; they are thrown away after pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from probes.tiny.architecture import GRID, HIDDEN, TOKENS
from probes.tiny.pictures import CELLS, COLOUR_NAMES, MAX_BLOCKS, NOTHING, REACH_CM, SKY_CLASS, STEP_CM, Picture

PLACES = 2 * REACH_CM + 1
STEPS = 2 * STEP_CM + 1


class ReadOuts(nn.Module):
    """Linear maps from features to what is there.

    Of every patch: the colours of its 2 x 2 cells and, of the block that covers it, its place, its number from the
    bottom, whether it is the top block and its shift from the block below. Of the mean patch: the number of blocks. Of
    every colour word in a prompt: whether there is such a block, its place and its number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.cells = nn.Linear(HIDDEN, 4 * (SKY_CLASS + 1))
        self.block = nn.Linear(HIDDEN, PLACES + (MAX_BLOCKS + 1) + 2 + STEPS)
        self.count = nn.Linear(HIDDEN, MAX_BLOCKS + 1)
        self.word_norm = nn.LayerNorm(HIDDEN)
        self.word = nn.Linear(HIDDEN, 2 + PLACES + MAX_BLOCKS + 1)

    def see(self, features: torch.Tensor, pictures: Sequence[Picture]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of the patches' read-outs, and how often they are right.

        Args:
            features: (n, `TOKENS`, `HIDDEN`) output of the vision tower.
            pictures: The n pictures.
        """
        hidden = self.norm(features)
        cells = torch.from_numpy(np.stack([p.cells for p in pictures])).long()
        half = CELLS // GRID
        cells = cells.view(-1, GRID, half, GRID, half).transpose(2, 3).reshape(-1)
        cell_logits = self.cells(hidden).view(len(cells), -1)

        patches = torch.from_numpy(np.stack([p.patches for p in pictures])).long().view(-1, TOKENS)
        blocks = torch.from_numpy(np.stack([p.blocks for p in pictures])).long()
        where, patch = (patches != NOTHING).nonzero(as_tuple=True)
        place, number, top, step = blocks[where, patches[where, patch]].unbind(1)
        logits = self.block(hidden[where, patch]).split([PLACES, MAX_BLOCKS + 1, 2, STEPS], dim=1)
        stacked = step != -99

        count = torch.tensor([len(p.scene.bodies) for p in pictures])
        count_logits = self.count(hidden.mean(dim=1))
        loss = (
            F.cross_entropy(cell_logits, cells)
            + _near(logits[0], place + REACH_CM)
            + F.cross_entropy(logits[1], number)
            + F.cross_entropy(logits[2], top)
            + _near(logits[3][stacked], step[stacked] + STEP_CM)
            + 0.5 * F.cross_entropy(count_logits, count)
        )
        right = {
            "cells": _share(cell_logits.argmax(1) == cells),
            "place": _share((logits[0].argmax(1) - place - REACH_CM).abs() <= 1),
            "number": _share(logits[1].argmax(1) == number),
            "shift": _share((logits[3].argmax(1) - step - STEP_CM)[stacked].abs() <= 1),
            "count": _share(count_logits.argmax(1) == count),
        }
        return loss, right

    def read(
        self, hidden: torch.Tensor, picture: torch.Tensor, colour: torch.Tensor, facts: torch.Tensor
    ) -> torch.Tensor:
        """Loss of the colour words' read-outs.

        Args:
            hidden: (w, `HIDDEN`) states of the decoder at the colour words.
            picture: (w,) index of the picture that each word is about.
            colour: (w,) index of the colour in `COLOUR_NAMES`.
            facts: (n, 6, 3) from `colour_facts`.
        """
        present, place, number = facts[picture, colour].unbind(1)
        logits = self.word(self.word_norm(hidden)).split([2, PLACES, MAX_BLOCKS + 1], dim=1)
        here = present == 1
        loss: torch.Tensor = (
            F.cross_entropy(logits[0], present)
            + _near(logits[1][here], place[here] + REACH_CM)
            + F.cross_entropy(logits[2][here], number[here])
        )
        return loss


def colour_facts(pictures: Sequence[Picture]) -> torch.Tensor:
    """(n, colours, 3) integers: whether the colour is there, centimetres from the middle, number from the bottom."""
    facts = np.zeros((len(pictures), len(COLOUR_NAMES), 3), np.int64)
    for row, picture in zip(facts, pictures, strict=True):
        for body, (place, number, *_) in zip(picture.scene.bodies, picture.blocks, strict=False):
            row[COLOUR_NAMES.index(body.colour)] = (1, place, number)
    return torch.from_numpy(facts)


def _near(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to a bell around the target bin: one centimetre off is nearly right."""
    bins = torch.arange(logits.shape[1])
    bell = torch.softmax(-0.5 * (bins - target[:, None]).float() ** 2, dim=1)
    return -(bell * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).sum() / max(1, len(target))


def _share(right: torch.Tensor) -> float:
    return float(right.float().mean())
