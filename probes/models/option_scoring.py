"""Exact log-probabilities of many candidate replies to one prompt, with the prompt read once.

The candidates, as token sequences, form a tree. After the prompt has been read into the key-value cache, all nodes of
the tree go through the decoder together: a node sees the prompt and its own ancestors, at the position that it has in
its reply. That is exact, and costs one token per distinct beginning instead of one prompt per candidate.

A candidate includes the token that ends the turn, so that "1" and "12" compete as whole replies.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

log = logging.getLogger(__name__)

Inputs = dict[str, torch.Tensor]
Tokens = tuple[int, ...]
LOGITS_BUDGET = 64_000_000
"""Largest number of logits held at once (256 MB in single precision)."""
PART = 256
"""Nodes that go through the decoder together: nodes of different branches do not see each other, so that more at once
only make the mask larger (of 3,111 pairs of numbers, 256 at a time take a third of the time of all at once)."""
TOLERANCE = {torch.float32: 1e-3}
"""Nats by which the tree may differ from plain generation in the check; `COARSE` for less precise types."""
COARSE = 0.25
CHECKED = 3
"""Candidates per trial on which the tree is checked against plain generation, once per model."""


@dataclass(frozen=True)
class Tree:
    """The distinct beginnings of a set of candidates, parents before children.

    Attributes:
        tokens: Last token of each node.
        parents: Index of each node's parent; -1 for a first token.
        depths: Tokens before the last one.
        inner: Nodes that have children.
        leaves: Node at which each candidate ends.
    """

    tokens: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    inner: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]


def build_tree(candidates: Sequence[Tokens]) -> Tree:
    """The tree of the candidates, none of which may be empty."""
    nodes: dict[Tokens, int] = {}
    parents: list[int] = []
    for candidate in candidates:
        for end in range(1, len(candidate) + 1):
            if candidate[:end] not in nodes:
                parents.append(nodes[candidate[: end - 1]] if end > 1 else -1)
                nodes[candidate[:end]] = len(nodes)
    return Tree(
        tokens=np.array([beginning[-1] for beginning in nodes]),
        parents=np.array(parents),
        depths=np.array([len(beginning) - 1 for beginning in nodes]),
        inner=np.array(sorted({p for p in parents if p >= 0}), dtype=np.int64),
        leaves=np.array([nodes[candidate] for candidate in candidates]),
    )


class OptionScorer:
    """Scores candidates with one model. On its first batch it checks the tree against plain generation.

    A decoder that cannot take an attention mask of its own (or keeps its past in some other form) fails that check
    and is served by plain generation from then on: as exact, but slower.
    """

    def __init__(self, model: Any, pad_token: int) -> None:
        self._model = model
        self._pad = pad_token
        self._trees: dict[tuple[Tokens, ...], Tree] = {}
        self._use_tree: bool | None = None
        self._first_position = 0
        text = model.config.get_text_config()
        self._window: int | None = getattr(text, "sliding_window", None)

    @torch.inference_mode()
    def score(self, inputs: Inputs, candidates: Sequence[tuple[Tokens, ...]]) -> list[npt.NDArray[np.float64]]:
        """The log-probability of every candidate of every row.

        Args:
            inputs: What the processor made of a batch of prompts, padded on the left.
            candidates: Per row, the candidates' tokens, each with the token that ends the turn.
        """
        # Where attention is limited to a window, the mask and the cache of the tree hold only inside it.
        longest = inputs["input_ids"].shape[1] + max(len(reply) for row in candidates for reply in row)
        if self._window is not None and longest > self._window:
            return self._generated(inputs, candidates)
        if self._use_tree is None:
            self._use_tree = self._check(inputs, candidates)
        return self._by_tree(inputs, candidates) if self._use_tree else self._generated(inputs, candidates)

    def _check(self, inputs: Inputs, candidates: Sequence[tuple[Tokens, ...]]) -> bool:
        """Whether the tree gives what plain generation gives, on a few candidates of each row."""
        few = [tuple(sorted(row, key=len, reverse=True)[:CHECKED]) for row in candidates]
        expected, worst = self._generated(inputs, few), np.inf
        for self._first_position in (0, 1):  # PaliGemma counts from 1
            try:
                found = self._by_tree(inputs, few)
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
                log.warning("options are scored one by one, which is slow: this model takes no tree (%s)", error)
                return False
            worst = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
            if worst <= TOLERANCE.get(self._model.dtype, COARSE):
                return True
        log.warning("options are scored one by one, which is slow: a tree of them is off by %.3g nats", worst)
        return False

    def _by_tree(self, inputs: Inputs, candidates: Sequence[tuple[Tokens, ...]]) -> list[npt.NDArray[np.float64]]:
        first, cache = self._read(inputs)
        seen = inputs["attention_mask"]
        start = seen.sum(dim=1) + self._offset(len(seen)) + self._first_position
        scores: list[npt.NDArray[np.float64]] = [np.empty(0)] * len(candidates)
        rows_of: dict[tuple[Tokens, ...], list[int]] = {}
        for row, texts in enumerate(candidates):
            rows_of.setdefault(texts, []).append(row)
        for texts, rows in rows_of.items():
            if texts not in self._trees:
                self._trees[texts] = build_tree(texts)
            tree, index = self._trees[texts], torch.tensor(rows, device=seen.device)
            # (rows, nodes): log-probability of each node's token, given its ancestors.
            steps = np.empty((len(rows), len(tree.tokens)))
            roots = np.flatnonzero(tree.parents < 0)
            steps[:, roots] = _logprobs(first[index, None], np.zeros(len(roots), int), tree.tokens[roots])
            for part in _parts(tree, max(32, min(PART, LOGITS_BUDGET // (len(rows) * first.shape[-1])))):
                logits = self._read_nodes(tree, part, cache, index, seen[index], start[index])
                place = {node: i for i, node in enumerate(part)}
                children = np.flatnonzero(np.isin(tree.parents, part))
                sources = np.array([place[parent] for parent in tree.parents[children]])
                steps[:, children] = _logprobs(logits, sources, tree.tokens[children])
            for node, parent in enumerate(tree.parents):
                if parent >= 0:
                    steps[:, node] += steps[:, parent]
            for i, row in enumerate(rows):
                scores[row] = steps[i, tree.leaves]
        return scores

    def _read(self, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """Read the prompts: logits of the first token of the reply (rows, vocabulary), and the cache."""
        # By way of `generate`, which knows for every architecture how positions and pictures enter.
        out = self._model.generate(**inputs, generation_config=self._settings(1))
        return out.logits[0], out.past_key_values

    def _read_nodes(
        self, tree: Tree, part: Sequence[int], cache: Any, rows: torch.Tensor, seen: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Logits (rows, nodes of the part, vocabulary) of what follows each node."""
        nodes = np.array(part)
        place = {node: i for i, node in enumerate(part)}
        related = np.eye(len(nodes), dtype=bool)
        for i, node in enumerate(nodes):
            parent = int(tree.parents[node])
            if parent >= 0:
                related[i] |= related[place[parent]]
        prompt = seen.bool()[:, None, :].expand(-1, len(nodes), -1)
        visible = torch.cat([prompt, torch.from_numpy(related).to(seen.device).expand(len(seen), -1, -1)], dim=2)
        mask = torch.zeros(visible.shape, dtype=self._model.dtype, device=seen.device)
        mask.masked_fill_(~visible, torch.finfo(self._model.dtype).min)
        positions = start[:, None] + torch.from_numpy(tree.depths[nodes]).to(start.device)
        branch = copy.deepcopy(cache)
        branch.batch_select_indices(rows)
        out = self._model(
            input_ids=torch.from_numpy(tree.tokens[nodes]).to(seen.device).expand(len(seen), -1),
            attention_mask=mask[:, None],
            position_ids=positions.expand(3, -1, -1) if self._rope_owner() is not None else positions,
            past_key_values=branch,
            use_cache=True,
        )
        logits: torch.Tensor = out.logits
        return logits

    def _offset(self, rows: int) -> torch.Tensor | int:
        """What is added to the number of tokens seen to get the next position (models with 2-D picture positions)."""
        owner = self._rope_owner()
        return 0 if owner is None else owner.rope_deltas.reshape(rows)

    def _rope_owner(self) -> Any:
        return next((m for m in self._model.modules() if getattr(m, "rope_deltas", None) is not None), None)

    def _generated(self, inputs: Inputs, candidates: Sequence[tuple[Tokens, ...]]) -> list[npt.NDArray[np.float64]]:
        """The same by plain generation, in which every reply is forced on the model in turn."""
        scores = [np.empty(len(row)) for row in candidates]
        for number in range(max(len(row) for row in candidates)):
            replies = [row[min(number, len(row) - 1)] for row in candidates]
            force = LogitsProcessorList([_Force(replies, inputs["input_ids"].shape[1], self._pad)])
            settings = self._settings(max(len(reply) for reply in replies))
            out = self._model.generate(**inputs, generation_config=settings, logits_processor=force)
            steps = [torch.log_softmax(logits.float(), dim=-1) for logits in out.logits]
            for row, reply in enumerate(replies):
                if number < len(candidates[row]):
                    scores[row][number] = sum(float(steps[i][row, token]) for i, token in enumerate(reply))
        return scores

    def _settings(self, tokens: int) -> GenerationConfig:
        # No end token: a forced reply ends where it ends.
        return GenerationConfig(
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self._pad,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )


class _Force(LogitsProcessor):
    """Makes greedy generation say the given replies, padded at their end."""

    def __init__(self, replies: Sequence[Tokens], prompt: int, pad: int) -> None:
        self._replies, self._prompt, self._pad = replies, prompt, pad

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._prompt
        forced = torch.full_like(scores, -torch.inf)
        for row, reply in enumerate(self._replies):
            forced[row, reply[step] if step < len(reply) else self._pad] = 0.0
        return forced


def _parts(tree: Tree, limit: int) -> list[list[int]]:
    """The inner nodes, with all their ancestors, in groups of at most `limit` (or of one node and its ancestors)."""
    parts: list[list[int]] = []
    members: set[int] = set()
    for node in tree.inner.tolist():
        line = []
        while node >= 0 and node not in members:
            line.append(node)
            node = int(tree.parents[node])
        if parts and len(parts[-1]) + len(line) <= limit:
            parts[-1] += reversed(line)
            members.update(line)
            continue
        line = [line[0]]
        while (parent := int(tree.parents[line[-1]])) >= 0:
            line.append(parent)
        parts.append(list(reversed(line)))
        members = set(line)
    return parts


def _logprobs(
    logits: torch.Tensor, sources: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Log-probabilities (rows, edges) of `tokens` after the positions `sources`; logits are (rows, positions, words)."""
    values = logits.float()
    total = torch.logsumexp(values, dim=-1)
    at, word = torch.from_numpy(sources).to(values.device), torch.from_numpy(tokens).to(values.device)
    return (values[:, at, word] - total[:, at]).double().cpu().numpy()
