"""Fine-tuning of the text encoder on what customers take together; the start ships where that is no better."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import sparse

from encoders.text import TextEncoder, bfloat16_is_fast, forward

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_SCALE: Final = 20.0
_BATCH: Final = 64
_LEARNING_RATE: Final = 5e-5
_TUNED_LAYERS: Final = 2
"""Of the transformer, counted from the top: the lower ones keep what the pretraining taught, and a CPU is in time."""
_POWER: Final = 6
"""Of the cosines, as the ranker's text score takes them."""
_MIX: Final = (0.5, 1.0)
_FEWEST_PAIRS: Final = 256
_MOST_PAIRS: Final = 1536
_TRAINED_TOKENS: Final = 32
_MOST_CANDIDATES: Final = 1000
"""Held-out items that are ranked: three encoders have to encode them."""


def fine_tune(
    encoder: TextEncoder,
    texts: Sequence[str],
    interactions: sparse.csr_array,
    *,
    held_out: NDArray[np.int64],
    n_pairs: int | None = None,
    n_test_users: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TextEncoder:
    """An encoder whose near texts are products that customers take together, or the given one where it is no better.

    Pairs of items are drawn by their number of common customers over the root of the product of their popularities
    (popularity^-0.5 each). The loss is the softmax over a batch's other items (Henderson et al. 2017, multiple
    negatives ranking; cosines times 20) with log popularity taken off the logits (Yi et al. 2019), without negatives
    that share a customer with the anchor. The top two layers are trained; afterwards their weights are averaged with
    the start's (Wortsman et al. 2022, WiSE-FT), which keeps the distance to the start.

    What ships is the mix whose ranking of the held-out items for the customers who took them has the best NDCG@20, and
    only where the paired 95 % bootstrap interval of its gain lies above 0. ``metrics`` of the result says what was
    measured and what ships.

    Args:
        encoder: the start; it is not changed.
        texts: of all I items.
        interactions: users × items, binary, shape (U, I).
        held_out: nums of items that no pair holds, ascending.
        n_pairs: seen once each; ``None`` takes one for 32 interactions, between 256 and 1,536.
        n_test_users: customers that the held-out items are ranked for.
        seed: of pairs and customers.
        progress: called with steps done and in all.
    """
    n_pairs = n_pairs or int(np.clip(interactions.nnz // 32, _FEWEST_PAIRS, _MOST_PAIRS))
    rng = np.random.default_rng(seed)
    told = np.array([bool(text.strip()) for text in texts])
    warm = np.flatnonzero((np.bincount(interactions.indices, minlength=len(texts)) > 0) & told)
    seen = np.zeros(len(texts), dtype=np.float32)
    seen[warm] = 1
    seen[held_out] = 0
    visible = sparse.csr_array(interactions @ sparse.diags_array(seen))
    visible.eliminate_zeros()
    pairs = _pairs(visible, n_pairs, rng)
    test = _Test.draw(interactions, visible, held_out, n_test_users, rng)
    if len(pairs) < _FEWEST_PAIRS or not len(test.histories):
        encoder.metrics = {"ships": "start", "why": f"{len(pairs)} pairs of items with common customers are too few"}
        return encoder
    n_steps = len(pairs) // _BATCH
    below = _LowerLayers()
    with below.recorded(encoder):
        start = test.ndcg(encoder, texts)
    tuned = _trained(encoder, texts, visible, pairs, rng, lambda done: progress and progress(done, n_steps + 1))
    measured: dict[str, Any] = {"pairs": len(pairs), "test users": len(test.histories), "start": _mean(start)}
    best, best_gain, interval = encoder, 0.0, (0.0, 0.0)
    for mix in _MIX:
        candidate = _mixed(encoder, tuned, mix)
        with below.replayed(candidate):
            gain = test.ndcg(candidate, texts) - start
        measured[f"tuned, mix {mix}"] = _mean(start + gain)
        low, high = np.quantile(gain[rng.integers(len(gain), size=(1000, len(gain)))].mean(axis=1), (0.025, 0.975))
        if low > 0 and gain.mean() > best_gain:
            best, best_gain, interval = candidate, float(gain.mean()), (float(low), float(high))
    ships = "start" if best is encoder else "tuned"
    best.metrics = {
        **measured,
        "ships": ships,
        "gain": round(best_gain, 4),
        "interval": [round(x, 4) for x in interval],
    }
    if progress is not None:
        progress(n_steps + 1, n_steps + 1)
    return best


class _Test:
    """Held-out items to be ranked for customers who took them, by the sum of cosine^6 over their other items."""

    def __init__(
        self, histories: list[NDArray[np.int64]], positives: list[NDArray[np.int64]], candidates: NDArray[np.int64]
    ) -> None:
        self.histories = histories
        self._positives = positives
        self._candidates = candidates
        self._items = np.unique(np.concatenate([*histories, candidates]))

    @classmethod
    def draw(
        cls,
        interactions: sparse.csr_array,
        visible: sparse.csr_array,
        held_out: NDArray[np.int64],
        n_users: int,
        rng: np.random.Generator,
    ) -> _Test:
        if len(held_out) > _MOST_CANDIDATES:
            held_out = np.sort(rng.choice(held_out, _MOST_CANDIDATES, replace=False))
        hidden = sparse.csr_array(interactions[:, held_out])
        users = rng.permutation(np.flatnonzero((np.diff(hidden.indptr) > 0) & (np.diff(visible.indptr) > 0)))[:n_users]
        rows = [(visible.indices[slice(*visible.indptr[user : user + 2])][-50:], user) for user in users]
        positives = [hidden.indices[slice(*hidden.indptr[user : user + 2])] for _, user in rows]
        return cls(
            [history.astype(np.int64) for history, _ in rows],
            [taken.astype(np.int64) for taken in positives],
            held_out,
        )

    def ndcg(self, encoder: TextEncoder, texts: Sequence[str]) -> NDArray[np.float64]:
        """NDCG@20 of each customer. Shape (B,)."""
        vectors = encoder.encode([texts[item] for item in self._items])
        candidates = vectors[np.searchsorted(self._items, self._candidates)]
        discount = 1 / np.log2(np.arange(2, 22))
        values = np.empty(len(self.histories))
        for row, (history, positives) in enumerate(zip(self.histories, self._positives, strict=True)):
            cosines = candidates @ vectors[np.searchsorted(self._items, history)].T
            scores = (np.maximum(cosines, 0) ** _POWER).sum(axis=1)
            hits = np.isin(np.argsort(-scores, kind="stable")[:20], positives)
            values[row] = (hits * discount[: len(hits)]).sum() / discount[: len(positives)].sum()
        return values


def _pairs(visible: sparse.csr_array, n_pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Pairs of different items with a common customer, no pair twice. Shape (P, 2), P ≤ n_pairs."""
    recent = [visible.indices[start:end][-50:] for start, end in zip(visible.indptr, visible.indptr[1:], strict=False)]
    rows = np.repeat(np.arange(len(recent)), [len(row) for row in recent])
    short = sparse.csr_array((np.ones(len(rows)), (rows, np.concatenate(recent))), shape=visible.shape)
    popularity = np.maximum(np.bincount(short.indices, minlength=short.shape[1]), 1)
    together = sparse.coo_array(sparse.triu(short.T @ short, k=1))
    weights = together.data / np.sqrt(popularity[together.row] * popularity[together.col])
    n_drawn = min(n_pairs, together.nnz) // _BATCH * _BATCH
    if not n_drawn:
        return np.empty((0, 2), dtype=np.int64)
    # Gumbel top-k: a draw without replacement in proportion to the weights.
    keys = np.log(weights) + rng.gumbel(size=together.nnz)
    drawn = rng.permutation(np.argpartition(-keys, n_drawn - 1)[:n_drawn])
    pairs = np.stack([together.row[drawn], together.col[drawn]], axis=1).astype(np.int64)
    return rng.permuted(pairs, axis=1)


def _trained(
    encoder: TextEncoder,
    texts: Sequence[str],
    visible: sparse.csr_array,
    pairs: NDArray[np.int64],
    rng: np.random.Generator,
    report: Callable[[int], Any],
) -> TextEncoder:
    import torch

    torch.manual_seed(int(rng.integers(2**31)))
    model = copy.deepcopy(encoder.model)
    device = model.device.type
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tuned = _top_layers(model)
    for parameter in tuned:
        parameter.requires_grad_(True)
    popularity = np.maximum(np.bincount(visible.indices, minlength=visible.shape[1]), 1)
    log_q = torch.from_numpy(np.log(popularity / popularity.sum()).astype(np.float32)).to(model.device)
    by_item = sparse.csr_array(visible.T)
    optimizer = torch.optim.AdamW(tuned, lr=_LEARNING_RATE, weight_decay=0.01)
    batches = pairs.reshape(-1, _BATCH, 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * _LEARNING_RATE, total_steps=len(batches) + 1)
    model.max_seq_length = min(int(model.max_seq_length or _TRAINED_TOKENS), _TRAINED_TOKENS)
    model.train()
    for step, batch in enumerate(batches, start=1):
        anchors, others = batch[:, 0], batch[:, 1]
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
            vectors = forward(model, [texts[item] for item in batch.T.ravel().tolist()])
        logits = _SCALE * vectors[:_BATCH] @ vectors[_BATCH:].T - log_q[others]
        # What shares a customer with the anchor is no negative; its own partner on the diagonal stays.
        shared = (by_item[anchors] @ by_item[others].T).toarray() > 0
        same = (anchors[:, None] == others[None, :]) | (others[:, None] == others[None, :])
        hidden = torch.from_numpy((shared | same) & ~np.eye(_BATCH, dtype=bool)).to(model.device)
        loss = torch.nn.functional.cross_entropy(
            logits.masked_fill(hidden, -1e4), torch.arange(_BATCH, device=model.device)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        optimizer.step()
        schedule.step()
        report(step)
    model.max_seq_length = encoder.model.max_seq_length
    return TextEncoder(model.eval())


class _LowerLayers:
    """What the layers below the tuned ones make of the test texts: the start's pass keeps it, the mixes take it.

    So a mix runs two layers of MiniLM's six. Both encode the same texts in the same batches, since neither has met one
    before.
    """

    def __init__(self) -> None:
        self._states: list[torch.Tensor] = []

    @contextmanager
    def recorded(self, encoder: TextEncoder) -> Iterator[None]:
        """Keep the states of every batch that the encoder encodes, if its layers pass on nothing else."""
        import torch

        stack = _layers(encoder.running_model)
        if encoder.has_met_texts or len(stack) <= _TUNED_LAYERS:
            yield
            return

        plain = True

        def keep(layer: Any, given: tuple[Any, ...]) -> None:
            self._states.extend(given[:1])

        def look(layer: Any, given: tuple[Any, ...], states: Any) -> None:
            nonlocal plain
            plain &= isinstance(states, torch.Tensor)

        handles = (stack[-_TUNED_LAYERS].register_forward_pre_hook(keep), stack[0].register_forward_hook(look))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if not plain:  # MPNet's and T5's layers give more than states, which ``_pass_on`` would not
                self._states.clear()

    @contextmanager
    def replayed(self, encoder: TextEncoder) -> Iterator[None]:
        """Let an encoder that differs above them alone start from the kept states, batch by batch."""
        if not self._states:
            yield
            return
        stack = _layers(encoder.running_model)
        below, states = list(stack[:-_TUNED_LAYERS]), iter(self._states)
        for layer in below:
            layer.forward = _pass_on
        handle = stack[-_TUNED_LAYERS].register_forward_pre_hook(lambda layer, given: (next(states), *given[1:]))
        try:
            yield
        finally:
            handle.remove()
            for layer in below:
                del layer.forward


def _pass_on(states: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
    return states


def _layers(model: Any) -> Any:
    """The transformer's layers, the lowest first; empty for a model of another make."""
    import torch

    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(stacks, key=len, default=torch.nn.ModuleList())


def _top_layers(model: Any) -> list[torch.nn.Parameter]:
    """Parameters of the top transformer layers; of a model of another make, all of them."""
    layers = _layers(model)
    return list((layers[-_TUNED_LAYERS:] if len(layers) else model).parameters())


def _mixed(start: TextEncoder, tuned: TextEncoder, share: float) -> TextEncoder:
    """The weights between two encoders, ``share`` of the way from the first to the second."""
    import torch

    model = copy.deepcopy(tuned.model)
    with torch.no_grad():
        for weight, old in zip(model.parameters(), start.model.parameters(), strict=True):
            weight.copy_(old + share * (weight - old))
    return TextEncoder(model)


def _mean(values: NDArray[np.float64]) -> float:
    return round(float(values.mean()), 4)
