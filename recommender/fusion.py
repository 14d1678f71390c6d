"""``Fusion``: one score out of many, learned on items that were hidden as if they were new.

The pieces: ``Examples`` (users with hidden positives and every candidate's scores), a listwise network, and a
calibrator that turns its scores into log odds that compare across users and between new and known items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from recommender.metrics import ranking_metrics, top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HIDDEN_SIZE: Final = 64
_USERS_A_STEP: Final = 64
_LEARNING_RATE: Final = 2e-3
_WEIGHT_DECAY: Final = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Users with hidden positives among C candidates.

    Attributes:
        personal: scaled scores, shape (B, C, S), float16.
        facts: of the candidates, shape (C, F).
        n_history: items of each history, shape (B,).
        positives: user row and candidate column of each hidden event, shape (2, P).
        known: the same of each event that is not hidden: these candidates are not ranked. Shape (2, Q).
        rows: the histories, as ``Scorers.histories`` gives them.
        scale: their scale, shape (B, 2, S).
    """

    personal: NDArray[np.float16]
    facts: NDArray[np.float32]
    n_history: NDArray[np.float32]
    positives: NDArray[np.int64]
    known: NDArray[np.int64]
    rows: sparse.csr_array
    scale: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.personal)

    def ndcg(self, scores: NDArray[np.float32], k: int = 20) -> NDArray[np.float64]:
        """NDCG@k of each user, ties in random order. ``scores`` has shape (B, C), the result (B,)."""
        allowed = np.ones(scores.shape, dtype=bool)
        allowed[self.known[0], self.known[1]] = False
        ones = np.ones(self.positives.shape[1], dtype=np.float32)
        relevant = sparse.csr_array((ones, (self.positives[0], self.positives[1])), shape=scores.shape)
        best = top_k(scores, k, np.random.default_rng(0), allowed=allowed)
        return ranking_metrics(best, relevant, ks=(k,))[f"ndcg@{k}"]


def inputs(personal: Any, facts: Any, n_history: Any) -> torch.Tensor:
    """Everything the network reads of each pair. Shape (B, C, S + F + 1)."""
    scores = torch.as_tensor(personal).float()
    n_users, n_items, _ = scores.shape
    return torch.cat(
        [
            scores,
            torch.as_tensor(facts)[None].expand(n_users, -1, -1),
            torch.log1p(torch.as_tensor(n_history).float())[:, None, None].expand(-1, n_items, 1),
        ],
        dim=2,
    )


class _Network(nn.Module):
    """w · x + MLP(asinh x): the logarithmic squash keeps the rare, huge scores of sparse views from ruling the MLP."""

    def __init__(self, blend: NDArray[np.float32]) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.from_numpy(blend.astype(np.float32)))
        self.first = nn.Linear(len(blend), _HIDDEN_SIZE)
        self.second = nn.Linear(_HIDDEN_SIZE, _HIDDEN_SIZE)
        self.last = nn.Parameter(torch.zeros(_HIDDEN_SIZE))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(functional.gelu(self.first(torch.asinh(x))))
        scores: torch.Tensor = x @ self.linear + functional.gelu(self.second(hidden)) @ self.last
        return scores

    def blind(self, readable: NDArray[np.bool_]) -> None:
        """Cut the inputs that may not be read."""
        with torch.no_grad():
            mask = torch.from_numpy(readable)
            self.linear.mul_(mask)
            self.first.weight.mul_(mask)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.state_dict().items()}


class Fusion:
    """score = w · x + MLP(asinh x), trained by a softmax over all candidates of a user (Cao et al. 2007, ListNet).

    The network starts as a given linear blend with an MLP of zero, so that what it learns is a correction, and goes
    back to the best state that it had on validation items: it never ships worse than the blend.
    """

    def __init__(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self.weights = weights

    @classmethod
    def fit(
        cls,
        blend: NDArray[np.float32],
        train: Sequence[Examples],
        validation: Examples,
        *,
        readable: NDArray[np.bool_],
        epochs: int,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Fusion, dict[str, Any]]:
        """Train.

        Args:
            blend: linear weights of the untrained blend, shape (S + F + 1,).
            train: examples, one set a fold.
            validation: examples of other items.
            readable: inputs that may be used; the others get weights of exactly 0 and stay there. Shape (S + F + 1,).
            epochs: passes over all users; the state after the best one is kept.
            seed: of the initial weights and the order.
            progress: called with epochs done and in all.

        Returns:
            The fusion, and its NDCG@20 on validation items by epoch (the first is the blend's).
        """
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        train = [examples for examples in train if len(examples)]
        network = _Network(_tempered(blend, train))
        network.blind(readable)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        batches = [
            (examples, rows)
            for examples in train
            for rows in np.array_split(np.arange(len(examples)), max(1, len(examples) // _USERS_A_STEP))
            if len(rows)
        ]
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, _LEARNING_RATE, total_steps=max(1, epochs * len(batches)) + 1
        )
        fusion = cls(network.arrays())
        curve = [float(validation.ndcg(fusion.scores(validation)).mean())]
        best = fusion
        shuffled = [rng.permutation(len(examples)) for examples in train]
        for epoch in range(epochs):
            network.train()
            for number in rng.permutation(len(batches)):
                examples, rows = batches[number]
                order = shuffled[next(n for n, other in enumerate(train) if other is examples)]
                loss = _listwise_loss(network, examples, order[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                network.blind(readable)
                schedule.step()
            fusion = cls(network.arrays())
            curve.append(float(validation.ndcg(fusion.scores(validation)).mean()))
            if curve[-1] >= max(curve):
                best = fusion
            if progress is not None:
                progress(epoch + 1, epochs)
        return best, {"ndcg@20 by epoch": [round(value, 4) for value in curve]}

    def scores(self, examples: Examples) -> NDArray[np.float32]:
        """Scores of all candidates of all users. Shape (B, C)."""
        return self.predict(examples.personal, examples.facts, examples.n_history)

    def predict(self, personal: Any, facts: Any, n_history: Any) -> NDArray[np.float32]:
        """Scores of pairs. Shape (B, C)."""
        network = _Network(self.weights["linear"])
        network.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        network.eval()
        rows_at_once = max(1, 200_000 // max(1, personal.shape[1]))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(personal), rows_at_once):
                rows = slice(start, start + rows_at_once)
                parts.append(network(inputs(personal[rows], facts, n_history[rows])).numpy())
        return np.concatenate(parts) if parts else np.zeros(personal.shape[:2], dtype=np.float32)


def _tempered(blend: NDArray[np.float32], train: Sequence[Examples]) -> NDArray[np.float32]:
    """The blend times the factor of 2 ** (-6 … 1) at which its softmax fits the positives best: the order stays."""
    losses = {}
    for factor in 2.0 ** np.arange(-6, 2):
        network = _Network((blend * factor).astype(np.float32)).eval()
        with torch.inference_mode():
            losses[factor] = sum(float(_listwise_loss(network, part, np.arange(min(len(part), 256)))) for part in train)
    return (blend * min(losses, key=losses.__getitem__)).astype(np.float32)


def _listwise_loss(network: _Network, examples: Examples, users: NDArray[np.int64]) -> torch.Tensor:
    """Cross entropy of the hidden positives; a user counts by the root of how many they have."""
    scores = network(inputs(examples.personal[users], examples.facts, examples.n_history[users]))
    row_of = np.full(len(examples), -1)
    row_of[users] = np.arange(len(users))
    known = row_of[examples.known[0]] >= 0
    scores = scores.index_put(
        (torch.from_numpy(row_of[examples.known[0][known]]), torch.from_numpy(examples.known[1][known])),
        torch.tensor(-1e4),
    )
    chosen = row_of[examples.positives[0]] >= 0
    rows, columns = row_of[examples.positives[0][chosen]], examples.positives[1][chosen]
    weights = 1 / np.sqrt(np.bincount(rows, minlength=len(users))[rows])
    picked = torch.log_softmax(scores, dim=1)[torch.from_numpy(rows), torch.from_numpy(columns)]
    return -(picked * torch.from_numpy(weights.astype(np.float32))).sum() / float(weights.sum())


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Platt scaling (1999): log odds = slope · lift + bias, lift = score − log mean exp of the reference's scores."""

    slope: float
    bias: float

    @classmethod
    def fit(cls, lifts: NDArray[np.float32], labels: NDArray[np.bool_], *, kept: float) -> Calibrator:
        """Fit on pairs.

        Args:
            lifts: shape (N,).
            labels: whether the pair was a hidden event, shape (N,).
            kept: share of the future events that the labels hold: the odds are of all of them divided by this.
        """
        from sklearn.linear_model import LogisticRegression

        if labels.all() or not labels.any():
            return cls(1.0, 0.0)
        model = LogisticRegression(C=1e3).fit(lifts[:, None], labels)
        return cls(float(max(model.coef_[0, 0], 1e-3)), float(model.intercept_[0] - np.log(kept)))

    def __call__(self, lifts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log odds, of the same shape."""
        return (self.slope * lifts + self.bias).astype(np.float32)
