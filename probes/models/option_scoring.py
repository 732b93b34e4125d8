"""Exact log-probabilities of many candidate replies to one prompt, with the prompt read once.

The candidates, as token sequences, form a tree. All its nodes go through the decoder together, a node seeing the prompt
and its own ancestors, at the position that it has in its reply. That is exact, and costs one token per distinct
beginning instead of one prompt per candidate. A small tree is read in the same pass as the prompt, where a model allows it; a
large one after the prompt has been read into the key-value cache.

A candidate includes the token that ends the turn, so that "1" and "12" compete as whole replies.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.reply_tree import (
    NOTHING,
    Part,
    Tokens,
    Tree,
    build_tree,
    divide,
    groups,
    part_of_tree,
    stack,
    sums,
)

log = logging.getLogger(__name__)

Inputs = dict[str, torch.Tensor]
LOGITS_BUDGET = 64_000_000
"""Largest number of logits held at once (256 MB in single precision)."""
PART = 256
"""Nodes that go through the decoder together: nodes of different branches do not see each other, so that more at once
only make the mask larger (of 3,111 pairs of numbers, 256 at a time take a third of the time of all at once)."""
AT_ONCE = 64
"""Nodes of the largest tree that is read in one pass with the prompt."""
TOLERANCE = {torch.float32: 1e-3}
"""Nats by which the tree may differ from plain generation in the check; `COARSE` for less precise types."""
COARSE = 0.25
CHECKED = 3
"""Candidates per trial on which the tree is checked against plain generation, once per model."""


class OptionScorer:
    """Scores candidates with one model. On its first batch it checks both ways of the tree against plain generation.

    A decoder that cannot take an attention mask of its own (or keeps its past in some other form) fails that check
    and is served by plain generation from then on: as exact, but slower.

    Args:
        model: The network.
        pad_token: What fills up short prompts.
    """

    def __init__(self, model: Any, pad_token: int) -> None:
        self._model = model
        self._pad = pad_token
        self._trees: dict[tuple[Tokens, ...], Tree] = {}
        self._parts: dict[tuple[tuple[Tokens, ...], int], list[Part]] = {}
        self._use_tree: bool | None = None
        self.at_once = False
        """Whether small trees are read in the same pass as the prompts, behind them."""
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

        Returns:
            Per row, (candidates,); NaN where the model's logits are not finite.
        """
        # Where attention is limited to a window, the mask and the cache of the tree hold only inside it.
        longest = inputs["input_ids"].shape[1] + max(len(reply) for row in candidates for reply in row)
        if self._window is not None and longest > self._window:
            return self._generated(inputs, candidates)
        if self._use_tree is None:
            few = [tuple(sorted(row, key=len, reverse=True)[:CHECKED]) for row in candidates]
            expected = self._generated(inputs, few)
            if not all(np.isfinite(scores).all() for scores in expected):
                return [np.full(len(row), np.nan) for row in candidates]  # nothing can be compared with these
            self._use_tree = self._check(inputs, few, expected)
        return self._by_tree(inputs, candidates) if self._use_tree else self._generated(inputs, candidates)

    def _check(
        self, inputs: Inputs, few: Sequence[tuple[Tokens, ...]], expected: Sequence[npt.NDArray[np.float64]]
    ) -> bool:
        """Whether the tree gives what plain generation gives, on a few candidates of each row."""
        problem: str | None = None
        for self._trimmed, self._first_position in itertools.product((True, False), (0, 1)):  # PaliGemma counts from 1
            problem = self._problem(inputs, few, expected)
            if problem is None:
                self.at_once = self._one_dimensional(inputs)
                self.at_once = self.at_once and self._problem(inputs, few, expected) is None
                return True
        log.warning("options are scored one by one, which is slow: %s", problem)
        return False

    def _problem(
        self, inputs: Inputs, few: Sequence[tuple[Tokens, ...]], expected: Sequence[npt.NDArray[np.float64]]
    ) -> str | None:
        """What is wrong with the tree as it is read now; None if it gives what is expected."""
        try:
            found = self._by_tree(inputs, few)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            return f"this model takes no tree ({' '.join(str(error).split())[:200]})"
        worst = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
        return (
            None if worst <= TOLERANCE.get(self._model.dtype, COARSE) else f"a tree of them is off by {worst:.3g} nats"
        )

    def _one_dimensional(self, inputs: Inputs) -> bool:
        """Whether tokens can be put behind a prompt: nothing but the mask says something about each token of it."""
        others = [value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")]
        return self._rope_owner() is None and all(value.shape != inputs["input_ids"].shape for value in others)

    def _by_tree(self, inputs: Inputs, candidates: Sequence[tuple[Tokens, ...]]) -> list[npt.NDArray[np.float64]]:
        for texts in set(candidates) - self._trees.keys():
            self._trees[texts] = build_tree(texts)
        trees = [self._trees[texts] for texts in candidates]
        # Per row and node, the log-probability of the node's token, given its ancestors.
        steps = [np.empty(len(tree.tokens)) for tree in trees]
        first = self._walk_at_once(inputs, candidates, trees, steps)
        if first is None:
            first = self._walk(inputs, candidates, trees, steps)
        begun = torch.log_softmax(first.float(), dim=-1).double().cpu().numpy()
        for row, tree in enumerate(trees):
            roots = np.flatnonzero(tree.parents < 0)
            steps[row][roots] = begun[row, tree.tokens[roots]]
        return [sums(tree, step) for tree, step in zip(trees, steps, strict=True)]

    def _walk(
        self,
        inputs: Inputs,
        candidates: Sequence[tuple[Tokens, ...]],
        trees: Sequence[Tree],
        steps: Sequence[npt.NDArray[np.float64]],
    ) -> torch.Tensor:
        """Fill in the steps of all nodes but the roots, by way of the cache; returns the logits of the roots."""
        first, (keyword, cache) = self._read(inputs)
        seen = inputs["attention_mask"]
        start = seen.sum(dim=1) + self._offset(len(seen)) + self._first_position
        for rows in groups(trees):
            limit = max(32, min(PART, LOGITS_BUDGET // (len(rows) * first.shape[-1])))
            lists = [self._split(candidates[row], limit) for row in rows]
            for number in range(max(map(len, lists))):
                parts = [one[number] if number < len(one) else NOTHING for one in lists]
                branch = {keyword: _branch(cache, rows, len(trees))}
                logits = self._read_nodes(parts, branch, seen[rows], start[rows])
                found = _logprobs(logits, parts)
                for row, part, values in zip(rows, parts, found, strict=True):
                    steps[row][part.children] = values
        return first

    def _walk_at_once(
        self,
        inputs: Inputs,
        candidates: Sequence[tuple[Tokens, ...]],
        trees: Sequence[Tree],
        steps: Sequence[npt.NDArray[np.float64]],
    ) -> torch.Tensor | None:
        """The same in one pass over prompts and trees; None if that cannot be done with these."""
        width = max(len(tree.inner) for tree in trees)
        size = len(trees) * (width + 1) * self._model.config.get_text_config().vocab_size
        if not self.at_once or width > AT_ONCE or size > LOGITS_BUDGET or len(groups(trees)) > 1:
            return None
        parts = [self._split(texts, AT_ONCE)[0] for texts in candidates]
        seen = inputs["attention_mask"].bool()
        rows, length = seen.shape
        tokens, depths, related = (torch.from_numpy(values).to(seen.device) for values in stack(parts))
        visible = torch.zeros((rows, length + width, length + width), dtype=torch.bool, device=seen.device)
        visible[:, :length, :length] = seen[:, None].expand(-1, length, -1).tril()
        visible[:, length:] = torch.cat([seen[:, None].expand(-1, width, -1), related], dim=2)
        counted = seen.cumsum(dim=1) + self._first_position
        rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        with last_words_only(self._model, width + 1) if self._trimmed else nullcontext():
            logits = self._model(
                input_ids=torch.cat([inputs["input_ids"], tokens], dim=1),
                attention_mask=self._mask(visible),
                position_ids=torch.cat([(counted - 1).clamp(min=0), counted[:, -1:] + depths], dim=1),
                use_cache=False,
                logits_to_keep=width + 1,
                **rest,
            ).logits
        for row, (part, values) in enumerate(zip(parts, _logprobs(logits[:, 1:], parts), strict=True)):
            steps[row][part.children] = values
        first: torch.Tensor = logits[:, 0]
        return first

    def _split(self, texts: tuple[Tokens, ...], limit: int) -> list[Part]:
        if (texts, limit) not in self._parts:
            tree = self._trees[texts]
            self._parts[texts, limit] = [part_of_tree(tree, nodes) for nodes in divide(tree, limit)]
        return self._parts[texts, limit]

    def _read(self, inputs: Inputs) -> tuple[torch.Tensor, tuple[str, Any]]:
        """Read the prompts: logits of the first token of the reply (rows, vocabulary), and the cache with its keyword."""
        # By way of `generate`, which knows for every architecture how positions and images enter.
        with last_words_only(self._model) if self._trimmed else nullcontext():
            out = self._model.generate(**inputs, generation_config=self._settings(1))
        keyword, cache = find_cache(out)
        if cache is None:
            raise TypeError(f"{type(out).__name__} of generate holds no cache")
        return out.logits[0], (keyword, cache)

    def _read_nodes(
        self, parts: Sequence[Part], branch: Mapping[str, Any], seen: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """Logits (rows, nodes, vocabulary) of what follows each node; shorter parts are filled up with node 0."""
        tokens, depths, related = (torch.from_numpy(values).to(seen.device) for values in stack(parts))
        prompt = seen.bool()[:, None, :].expand(-1, tokens.shape[1], -1)
        positions = start[:, None] + depths
        out = self._model(
            input_ids=tokens,
            attention_mask=self._mask(torch.cat([prompt, related], dim=2)),
            position_ids=positions.expand(3, -1, -1) if self._rope_owner() is not None else positions,
            use_cache=True,
            **branch,
        )
        logits: torch.Tensor = out.logits
        return logits

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """What is added to attention scores (rows, 1, queries, keys), from what each token may see."""
        mask = torch.zeros(visible.shape, dtype=self._model.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(self._model.dtype).min)[:, None]

    def _offset(self, rows: int) -> torch.Tensor | int:
        """What is added to the number of tokens seen to get the next position (models with 2-D image positions)."""
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
            said = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
            if [row[: len(reply)] for row, reply in zip(said, replies, strict=True)] != [list(one) for one in replies]:
                raise ModelError(
                    f"the generate of a {type(self._model).__name__} does not continue a prompt token by token, as probe"
                    " needs it: use another model"
                )
            steps = [torch.log_softmax(logits.float(), dim=-1) for logits in out.logits]
            for row, reply in enumerate(replies):
                if number < len(candidates[row]):
                    scores[row][number] = sum(float(steps[i][row, token]) for i, token in enumerate(reply))
        return scores

    @torch.inference_mode()
    def check(self, inputs: Inputs, reply: Tokens) -> None:
        """Refuse a network that does not continue a prompt with the tokens that it is made to say.

        Args:
            inputs: A prompt, as for `score`.
            reply: Some tokens.

        Raises:
            ModelError: If it does not.
        """
        self._generated(inputs, [(reply,)])

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


@contextmanager
def last_words_only(model: Any, words: int = 1) -> Iterator[None]:
    """Let the last layer work on the last positions only, beyond the keys and values of all of them.

    Nothing else of it is needed to start from a prompt padded on the left; for the small model it is a tenth of the
    computation. What its parts add to their input is nothing at the other positions: wrong there, and unused. Whether a model
    is built like that has to be checked.

    Args:
        model: The network.
        words: Number of last positions.
    """
    decoder = model.get_base_model().get_decoder() if hasattr(model, "get_base_model") else model.get_decoder()
    last = decoder.layers[-1]
    length = 0

    def cut(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal length
        length = given[0].shape[1]
        return given[0][:, -words:], *given[1:]

    def fill(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(out, (0, 0, length - out.shape[1], 0))

    parts = (last.self_attn.o_proj, last.mlp)
    hooks = [hook for part in parts for hook in (part.register_forward_pre_hook(cut), part.register_forward_hook(fill))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def find_cache(given: Mapping[str, Any]) -> tuple[str, Any]:
    """The key-value cache among keyword arguments or outputs of a model, and its keyword, which models take and give alike.

    By its type: transformers renamed it from `past_key_values` to `cache` in 5.24.

    Args:
        given: Keyword -> value.

    Returns:
        Keyword and cache; "" and None if there is none.
    """
    return next(((name, value) for name, value in given.items() if isinstance(value, Cache)), ("", None))


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
