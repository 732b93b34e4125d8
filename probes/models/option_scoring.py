"""Exact log-probabilities of many candidate replies to one prompt, with the prompt read once.

The candidates, as token sequences, form a tree. After the prompt has been read into the key-value cache, all nodes of
the tree go through the decoder together: a node sees the prompt and its own ancestors, at the position that it has in
its reply. That is exact, and costs one token per distinct beginning instead of one prompt per candidate.

A candidate includes the token that ends the turn, so that "1" and "12" compete as whole replies.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
SPARE = 128
"""Nodes by which the trees of a batch may be filled up to one size: about what a pass of its own would cost."""


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


@dataclass(frozen=True)
class Part:
    """Inner nodes of a tree that go through the decoder together, with all their ancestors.

    Attributes:
        tokens: Last token of each node (nodes,).
        depths: Tokens before it (nodes,).
        related: Which nodes each node sees: itself and its ancestors (nodes, nodes).
        children: Nodes of the tree whose token follows one of these (children,).
        sources: Place in this part of each child's parent (children,).
        words: Token of each child (children,).
    """

    tokens: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    related: npt.NDArray[np.bool_]
    children: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


_NONE = np.zeros(0, np.int64)
NOTHING = Part(_NONE, _NONE, np.zeros((0, 0), bool), _NONE, _NONE, _NONE)


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
        self._parts: dict[tuple[tuple[Tokens, ...], int], list[Part]] = {}
        self._use_tree: bool | None = None
        self._first_position = 0
        self._trimmed = True
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
        expected = self._generated(inputs, few)
        problem = ""
        for self._trimmed, self._first_position in itertools.product((True, False), (0, 1)):  # PaliGemma counts from 1
            try:
                found = self._by_tree(inputs, few)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
                problem = f"this model takes no tree ({' '.join(str(error).split())[:200]})"
                continue
            worst = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
            if worst <= TOLERANCE.get(self._model.dtype, COARSE):
                return True
            problem = f"a tree of them is off by {worst:.3g} nats"
        log.warning("options are scored one by one, which is slow: %s", problem)
        return False

    def _by_tree(self, inputs: Inputs, candidates: Sequence[tuple[Tokens, ...]]) -> list[npt.NDArray[np.float64]]:
        first, cache = self._read(inputs)
        seen = inputs["attention_mask"]
        start = seen.sum(dim=1) + self._offset(len(seen)) + self._first_position
        begun = torch.log_softmax(first.float(), dim=-1).double().cpu().numpy()
        for texts in set(candidates) - self._trees.keys():
            self._trees[texts] = build_tree(texts)
        trees = [self._trees[texts] for texts in candidates]
        # Per row and node, the log-probability of the node's token, given its ancestors.
        steps = [np.empty(len(tree.tokens)) for tree in trees]
        for row, tree in enumerate(trees):
            roots = np.flatnonzero(tree.parents < 0)
            steps[row][roots] = begun[row, tree.tokens[roots]]
        for rows in _groups(trees):
            limit = max(32, min(PART, LOGITS_BUDGET // (len(rows) * first.shape[-1])))
            lists = [self._split(candidates[row], limit) for row in rows]
            for number in range(max(map(len, lists))):
                parts = [one[number] if number < len(one) else NOTHING for one in lists]
                logits = self._read_nodes(parts, _branch(cache, rows, len(trees)), seen[rows], start[rows])
                found = _logprobs(logits, parts)
                for row, part, values in zip(rows, parts, found, strict=True):
                    steps[row][part.children] = values
        return [_sums(tree, step) for tree, step in zip(trees, steps, strict=True)]

    def _split(self, texts: tuple[Tokens, ...], limit: int) -> list[Part]:
        if (texts, limit) not in self._parts:
            tree = self._trees[texts]
            self._parts[texts, limit] = [_part(tree, nodes) for nodes in _divide(tree, limit)]
        return self._parts[texts, limit]

    def _read(self, inputs: Inputs) -> tuple[torch.Tensor, Any]:
        """Read the prompts: logits of the first token of the reply (rows, vocabulary), and the cache."""
        # By way of `generate`, which knows for every architecture how positions and pictures enter.
        with last_word_only(self._model) if self._trimmed else nullcontext():
            out = self._model.generate(**inputs, generation_config=self._settings(1))
        return out.logits[0], out.past_key_values

    def _read_nodes(self, parts: Sequence[Part], branch: Any, seen: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Logits (rows, nodes, vocabulary) of what follows each node; shorter parts are filled up with node 0."""
        rows, width = len(parts), max(len(part.tokens) for part in parts)
        tokens, depths = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
        related = np.broadcast_to(np.eye(width, dtype=bool), (rows, width, width)).copy()
        for row, part in enumerate(parts):
            n = len(part.tokens)
            tokens[row, :n], depths[row, :n], related[row, :n, :n] = part.tokens, part.depths, part.related
        prompt = seen.bool()[:, None, :].expand(-1, width, -1)
        visible = torch.cat([prompt, torch.from_numpy(related).to(seen.device)], dim=2)
        mask = torch.zeros(visible.shape, dtype=self._model.dtype, device=seen.device)
        mask.masked_fill_(~visible, torch.finfo(self._model.dtype).min)
        positions = start[:, None] + torch.from_numpy(depths).to(start.device)
        out = self._model(
            input_ids=torch.from_numpy(tokens).to(seen.device),
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


def _groups(trees: Sequence[Tree]) -> list[list[int]]:
    """Rows that go through the decoder together: smaller trees are filled up where that is cheaper than a pass."""
    rows_of: dict[int, list[int]] = {}
    for row, tree in enumerate(trees):
        rows_of.setdefault(id(tree), []).append(row)
    groups: list[list[int]] = []
    waste = 0
    for rows in sorted(rows_of.values(), key=lambda rows: -len(trees[rows[0]].inner)):
        if groups:
            waste += len(rows) * (len(trees[groups[-1][0]].inner) - len(trees[rows[0]].inner))
            if waste <= SPARE:
                groups[-1] += rows
                continue
        groups.append(list(rows))
        waste = 0
    return [sorted(rows) for rows in groups]


def _part(tree: Tree, nodes: Sequence[int]) -> Part:
    place = {node: i for i, node in enumerate(nodes)}
    related = np.eye(len(nodes), dtype=bool)
    for i, node in enumerate(nodes):
        parent = int(tree.parents[node])
        if parent >= 0:
            related[i] |= related[place[parent]]
    children = np.flatnonzero(np.isin(tree.parents, nodes))
    return Part(
        tokens=tree.tokens[list(nodes)],
        depths=tree.depths[list(nodes)],
        related=related,
        children=children,
        sources=np.array([place[parent] for parent in tree.parents[children]]),
        words=tree.tokens[children],
    )


def _divide(tree: Tree, limit: int) -> list[list[int]]:
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


@contextmanager
def last_word_only(model: Any) -> Iterator[None]:
    """Let the last layer work on the last position only, beyond the keys and values of all of them.

    Nothing else of it is needed to go on from a prompt padded on the left; for the small model it is a tenth of the
    computation. The layer adds what its parts give to their input, which spreads one position over all: wrong for the
    others, unused. Whether a model is built like that has to be checked.
    """
    decoder = model.get_base_model().get_decoder() if hasattr(model, "get_base_model") else model.get_decoder()
    last = decoder.layers[-1]
    hooks = [
        part.register_forward_pre_hook(lambda _, given: (given[0][:, -1:], *given[1:]))
        for part in (last.self_attn.o_proj, last.mlp)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _branch(cache: Any, rows: list[int], n: int) -> Any:
    """A cache of some of n rows that can grow by itself. Its tensors are shared: growing makes new ones."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    if rows != list(range(n)):
        branch.batch_select_indices(torch.tensor(rows))
    return branch


def _logprobs(logits: torch.Tensor, parts: Sequence[Part]) -> list[npt.NDArray[np.float64]]:
    """Log-probabilities of the children of every part; logits are (rows, nodes, vocabulary)."""
    values = logits.float()
    total = torch.logsumexp(values, dim=-1)
    sizes = [len(part.children) for part in parts]
    row = torch.from_numpy(np.repeat(np.arange(len(parts)), sizes)).to(values.device)
    source = torch.from_numpy(np.concatenate([part.sources for part in parts])).to(values.device)
    word = torch.from_numpy(np.concatenate([part.words for part in parts])).to(values.device)
    flat = (values[row, source, word] - total[row, source]).double().cpu().numpy()
    return np.split(flat, np.cumsum(sizes)[:-1])


def _sums(tree: Tree, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The log-probability of every candidate, from those of its tokens."""
    totals = steps.copy()
    for depth in range(1, int(tree.depths.max()) + 1):
        nodes = np.flatnonzero(tree.depths == depth)
        totals[nodes] += totals[tree.parents[nodes]]
    return totals[tree.leaves]
