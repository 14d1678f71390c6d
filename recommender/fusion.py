"""``Fusion``: one score out of many, learned on items that were hidden as if they were new.

The pieces: ``Examples`` (users with hidden positives and every candidate's scores), a listwise network, and a
calibrator that turns its scores into log odds that compare across users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from encoders.content import to_single
from recommender.metrics import ranking_metrics, top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HIDDEN_SIZE: Final = 32
_USERS_A_STEP: Final = 64
_CANDIDATES_A_STEP: Final = 300
_LEARNING_RATE: Final = 5e-3
_WEIGHT_DECAY: Final = 1e-2
_LINEAR_L2: Final = 1e-2
"""Of the linear model: .0001 to .01 end at the same NDCG, and this is there in half the steps."""
_MOST_STEPS: Final = 30
_CLIP: Final = 4.0
_PAIRS_AT_ONCE: Final = 50_000
"""That are predicted: what the network makes of more of them leaves the cache."""
_ANYONE: Final = "anyone"
"""Name of the weights of facts for customers without a history: one of them is not 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Users with hidden positives among C candidates.

    Attributes:
        personal: scaled scores, shape (S, B, C), float16.
        facts: of the candidates, shape (C, F).
        n_history: items of each history, shape (B,).
        positives: user row and candidate column of each hidden event, shape (2, P).
        known: the same of each event that is not hidden: these candidates are not ranked. Shape (2, Q).
        rows: the histories, as ``Scorers.histories`` gives them.
        scale: their scale, shape (B, 2, S).
        tested_share: of the users they were drawn from, the share that has a hidden positive, as all B have.
    """

    personal: NDArray[np.float16]
    facts: NDArray[np.float32]
    n_history: NDArray[np.float32]
    positives: NDArray[np.int64]
    known: NDArray[np.int64]
    rows: sparse.csr_array
    scale: NDArray[np.float32]
    tested_share: float

    def __len__(self) -> int:
        return int(self.personal.shape[1])

    def ndcg(self, scores: NDArray[np.float32], k: int = 20) -> NDArray[np.float64]:
        """NDCG@k of each user, ties in random order. ``scores`` has shape (B, C), the result (B,)."""
        allowed = np.ones(scores.shape, dtype=bool)
        allowed[self.known[0], self.known[1]] = False
        relevant = _indicator(self.positives, (len(scores), scores.shape[1]))
        best = top_k(scores, k, np.random.default_rng(0), allowed=allowed)
        return ranking_metrics(best, relevant, ks=(k,))[f"ndcg@{k}"]


class _Network(nn.Module):
    """w · x + MLP(x), where the MLP sees scores clipped: the rare, huge ones of sparse views must not rule it."""

    def __init__(self, linear: NDArray[np.float32]) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.from_numpy(linear.astype(np.float32)))
        self.first = nn.Linear(len(linear), _HIDDEN_SIZE)
        self.second = nn.Linear(_HIDDEN_SIZE, _HIDDEN_SIZE)
        self.last = nn.Parameter(torch.zeros(_HIDDEN_SIZE))
        self.dropout = nn.Dropout(0.1)

    def forward(self, personal: torch.Tensor, facts: torch.Tensor, n_history: torch.Tensor) -> torch.Tensor:
        """Scores of pairs, shape (B, C), from shapes (S, B, C), (C, F) and (B,)."""
        length = torch.log1p(n_history)
        scores = _weighted(self.linear[None], personal, facts, length)[0]
        if self.last.requires_grad or bool(self.last.any()):
            clipped = (x.clamp(-_CLIP, _CLIP) for x in (personal, facts, length))
            seen = _weighted(self.first.weight, *clipped) + self.first.bias[:, None, None]
            hidden = self.dropout(functional.gelu(seen)).flatten(1)
            second = functional.gelu(self.second.weight @ hidden + self.second.bias[:, None])
            scores = scores + (self.last @ second).view_as(scores)
        return scores

    def blind(self, readable: NDArray[np.bool_]) -> None:
        """Cut the inputs that may not be read."""
        with torch.no_grad():
            mask = torch.from_numpy(readable)
            self.linear.mul_(mask)
            self.first.weight.mul_(mask)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.state_dict().items()}


def _weighted(weights: torch.Tensor, personal: torch.Tensor, facts: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Weighted sums of all that is read of each pair, without one tensor that repeats the facts for every user.

    Args:
        weights: of the personal scores, the facts and the history's length, shape (H, S + F + 1).
        personal: shape (S, B, C).
        facts: shape (C, F).
        length: shape (B,).

    Returns:
        Shape (H, B, C).
    """
    n_scores = len(personal)
    own = (weights[:, :n_scores] @ personal.flatten(1)).view(-1, *personal.shape[1:])
    everyones = weights[:, n_scores:-1] @ facts.T
    return own + everyones[:, None, :] + (weights[:, -1:] * length)[:, :, None]


class Fusion:
    """score = w · x + MLP(x): a linear model, a small network, or their mean, which is again of this form.

    Both are trained by a softmax over a user's candidates (ListNet, Cao et al. 2007): the linear model to its optimum,
    since its loss is convex, and the network from there. The linear model rests on few numbers and carries over to
    other items as well; the network bends where the items to rank are those that it learned from. What ranks the
    validation items best is shipped, trained once more on them too. The untrained blend ships where it is better by
    more than the standard error of the difference: where chance alone tells them apart, what has learned from all
    rehearsals is the better bet.

    A customer without a history has no scores, and the weights that facts have beside scores say little without them:
    half of the NDCG of the predicted popularity. So one fact serves such customers, with a weight of its own.
    """

    def __init__(self, weights: dict[str, NDArray[np.float32]]) -> None:
        self.weights = weights

    @classmethod
    def fit(
        cls,
        blends: Sequence[NDArray[np.float32]],
        train: Sequence[Examples],
        validation: Examples,
        *,
        anyone: NDArray[np.float32],
        readable: NDArray[np.bool_],
        epochs: int,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Fusion, Fusion, dict[str, Any]]:
        """Train.

        Args:
            blends: linear weights of untrained blends, each of shape (S + F + 1,).
            train: examples, one set a fold.
            validation: examples of other items.
            anyone: 1 for the fact that serves customers without a history, else 0, shape (F,).
            readable: inputs that may be used; the others get weights of exactly 0. Shape (S + F + 1,).
            epochs: passes of the network over all users; 0 for a linear model alone.
            seed: of the initial weights and the order.
            progress: called with epochs done and in all.

        Returns:
            The fusion to ship; the same as it was validated, for what must not have seen the validation items; and the
            NDCG@20 on them of the blend, the linear model and, with epochs, the network and the mean of both.
        """
        # One candidate alone teaches nothing: any weights rank it first.
        train = [examples for examples in train if examples.positives.shape[1] and examples.personal.shape[2] > 1]
        report = progress or (lambda done, total: None)
        torch.manual_seed(seed)
        if not len(validation) or validation.personal.shape[2] < 2:
            blend = cls({**_Network(blends[0] * readable).arrays(), _ANYONE: anyone})
            return blend, blend, {"shipped": "blend", "because": "nothing to validate on"}
        of_blends = [float(validation.ndcg(blended(validation, blend * readable)).mean()) for blend in blends]
        tempered = _Network(_tempered(blends[int(np.argmax(of_blends))] * readable, train)).arrays()
        tempered[_ANYONE] = anyone
        models = {"blend": cls(tempered)}
        n_steps = 2 * (1 + epochs)

        def learned(examples: Sequence[Examples], before: int, epochs: int) -> dict[str, Fusion]:
            linear = {
                **tempered,
                "linear": _best_linear(tempered["linear"], examples, readable),
                _ANYONE: _best_for_anyone(anyone, examples),
            }
            report(before + 1, n_steps)
            if not epochs:
                return {"linear": cls(linear)}
            network = _train(
                linear, examples, readable, epochs, seed, report=lambda done: report(before + 1 + done, n_steps)
            )
            halves = {"linear": (linear["linear"] + network["linear"]) / 2, "last": network["last"] / 2}
            network[_ANYONE] = linear[_ANYONE]
            mean = {**network, **{name: array.astype(np.float32) for name, array in halves.items()}}
            return {"linear": cls(linear), "network": cls(network), "mean": cls(mean)}

        if train:
            models |= learned(train, 0, epochs)
        of_users = {name: validation.ndcg(model.scores(validation)) for name, model in models.items()}
        found = {name: float(values.mean()) for name, values in of_users.items()}
        shipped = max((name for name in found if name != "blend" or not train), key=found.__getitem__)
        ahead = of_users["blend"] - of_users[shipped]
        if ahead.mean() > ahead.std() / np.sqrt(len(ahead)):
            shipped = "blend"
        about = {"ndcg@20 of": {name: round(value, 4) for name, value in found.items()}, "shipped": shipped}
        final = models[shipped]
        if shipped == "blend":
            report(n_steps, n_steps)
        elif shipped == "linear":
            final = learned([*train, validation], n_steps - 1, 0)[shipped]
        else:
            final = learned([*train, validation], 1 + epochs, epochs)[shipped]
        return final, models[shipped], about

    def scores(self, examples: Examples) -> NDArray[np.float32]:
        """Scores of all candidates of all users. Shape (B, C)."""
        return self.predict(examples.personal, examples.facts, examples.n_history)

    def predict(self, personal: Any, facts: Any, n_history: Any) -> NDArray[np.float32]:
        """Scores of pairs, shape (B, C), from shapes (S, B, C), (C, F) and (B,)."""
        network = _loaded(self.weights).requires_grad_(False).eval()
        scores = np.empty(personal.shape[1:], dtype=np.float32)
        rows_at_once = max(1, _PAIRS_AT_ONCE // max(1, personal.shape[2]))
        with torch.inference_mode():
            for start in range(0, len(scores), rows_at_once):
                rows = slice(start, start + rows_at_once)
                scores[rows] = network(*_tensors(personal[:, rows], facts, n_history[rows])).numpy()
        scores[np.equal(n_history, 0)] = facts @ self.weights[_ANYONE]
        return scores


def _tensors(*arrays: NDArray[Any]) -> list[torch.Tensor]:
    return [torch.from_numpy(array).float() for array in arrays]


def _best_linear(
    start: NDArray[np.float32], train: Sequence[Examples], readable: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Weights that minimise the listwise loss over all candidates + l2 · |w|², by L-BFGS. Shape (S + F + 1,).

    Two dozen steps over everything are enough; 6 epochs of stochastic steps ended .4 % of NDCG lower. The history's
    length is the same for all of a user's candidates, so that its weight keeps its start.
    """
    from scipy.optimize import minimize

    wanted = [_Wanted.of(examples) for examples in train]
    n_scores = len(train[0].personal)
    free = readable.copy()
    free[-1] = False
    weights = (start * readable).astype(np.float32)

    def objective(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights[free] = values
        loss, gradient = _LINEAR_L2 * float(values @ values), np.zeros(len(weights))
        for part in wanted:
            part_loss, part_gradient = part.loss(weights[:n_scores], weights[n_scores:-1])
            loss += part_loss / len(wanted)
            gradient[:-1] += part_gradient / len(wanted)
        return loss, gradient[free] + 2 * _LINEAR_L2 * values

    found = minimize(
        objective, start[free].astype(np.float64), jac=True, method="L-BFGS-B", options={"maxiter": _MOST_STEPS}
    )
    weights[free] = found.x
    return weights


def _best_for_anyone(anyone: NDArray[np.float32], train: Sequence[Examples]) -> NDArray[np.float32]:
    """The chosen fact's weight where nothing else is known, so that its odds compare with others. Shape (F,)."""
    bare = [replace(examples, personal=examples.personal[:0]) for examples in train]
    start = np.append(anyone, np.float32(0))
    return _best_linear(start, bare, start > 0)[:-1].clip(min=1e-3 * anyone)


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """One fold, ready for the loss of a linear model.

    Attributes:
        scores: shape (S, B · C), float32.
        facts: shape (C, F).
        known: user row and column of candidates that are not ranked, shape (2, Q).
        positives: user row and column of the hidden events, shape (2, P).
        shares: of each hidden event, 1 / √(those of the user), summing to 1 over all, shape (P,).
        mass: of each user, shape (B, 1).
    """

    scores: NDArray[np.float32]
    facts: NDArray[np.float32]
    known: NDArray[np.int64]
    positives: NDArray[np.int64]
    shares: NDArray[np.float32]
    mass: NDArray[np.float32]

    @classmethod
    def of(cls, examples: Examples) -> _Wanted:
        n_scores, n_users, n_items = examples.personal.shape
        users = examples.positives[0]
        shares = 1 / np.sqrt(np.bincount(users, minlength=n_users))[users]
        shares = (shares / shares.sum()).astype(np.float32)
        mass = np.bincount(users, weights=shares, minlength=n_users).astype(np.float32)[:, None]
        scores = to_single(examples.personal).reshape(n_scores, n_users * n_items)
        return cls(scores, examples.facts, examples.known, examples.positives, shares, mass)

    def loss(self, of_scores: NDArray[np.float32], of_facts: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        """Cross entropy of the hidden events, and its gradient, shape (S + F,)."""
        totals = (of_scores @ self.scores).reshape(len(self.mass), -1) + self.facts @ of_facts
        totals[self.known[0], self.known[1]] = -1e4
        totals -= totals.max(axis=1, keepdims=True)
        wanted = float(totals[self.positives[0], self.positives[1]] @ self.shares)
        np.exp(totals, out=totals)
        sums = totals.sum(axis=1, keepdims=True)
        loss = float((np.log(sums) * self.mass).sum()) - wanted
        totals *= self.mass / sums
        np.subtract.at(totals, (self.positives[0], self.positives[1]), self.shares)
        return loss, np.concatenate([self.scores @ totals.ravel(), self.facts.T @ totals.sum(axis=0)])


def _train(
    start: dict[str, NDArray[np.float32]],
    train: Sequence[Examples],
    readable: NDArray[np.bool_],
    epochs: int,
    seed: int,
    *,
    report: Callable[[int], None],
) -> dict[str, NDArray[np.float32]]:
    """Train from a state. One-cycle schedule: the last state is the settled one."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = _loaded(start)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    n_batches = sum(max(1, len(examples) // _USERS_A_STEP) for examples in train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs * n_batches + 1)
    network.blind(readable)
    for epoch in range(epochs):
        batches = [
            (examples, users)
            for examples in train
            for users in np.array_split(rng.permutation(len(examples)), max(1, len(examples) // _USERS_A_STEP))
        ]
        for number in rng.permutation(len(batches)):
            examples, users = batches[number]
            loss = _listwise_loss(network, examples, users, rng)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            network.blind(readable)
        report(epoch + 1)
    return network.arrays()


def _loaded(weights: dict[str, NDArray[np.float32]]) -> _Network:
    network = _Network(weights["linear"])
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items() if name != _ANYONE})
    return network


def blended(examples: Examples, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores by the weights of the personal scores alone. Shape (B, C)."""
    used = np.flatnonzero(weights[: len(examples.personal)])
    total = np.zeros(examples.personal.shape[1:], dtype=np.float32)
    for column in used:
        total += weights[column] * to_single(examples.personal[column])
    return total


def _tempered(blend: NDArray[np.float32], train: Sequence[Examples]) -> NDArray[np.float32]:
    """The blend times the factor of 2 ** (-6 … 1) at which its softmax fits the positives best: the order stays."""
    losses = {}
    for factor in 2.0 ** np.arange(-6, 2):
        network = _Network((blend * factor).astype(np.float32)).requires_grad_(False).eval()
        rng = np.random.default_rng(0)
        losses[factor] = sum(
            float(_listwise_loss(network, part, np.arange(min(len(part), 256)), rng)) for part in train
        )
    best = min(losses, key=losses.__getitem__)
    return np.asarray(blend * best, dtype=np.float32)


def _listwise_loss(
    network: _Network, examples: Examples, users: NDArray[np.int64], rng: np.random.Generator
) -> torch.Tensor:
    """Cross entropy of the hidden positives among them and a sample of others; a user counts by the root of theirs."""
    shape = examples.personal.shape[1:]
    wanted, known = (_indicator(pairs, shape)[users] for pairs in (examples.positives, examples.known))
    sample = rng.permutation(shape[1])[:_CANDIDATES_A_STEP]
    columns = np.union1d(wanted.indices, sample)
    personal = examples.personal[:, users[:, None], columns]
    scores = network(*_tensors(personal, examples.facts[columns], examples.n_history[users])).masked_fill(
        torch.from_numpy(known[:, columns].toarray() > 0), -1e4
    )
    positives = torch.from_numpy(wanted[:, columns].toarray())
    positives = positives / positives.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
    return -(functional.log_softmax(scores, dim=1) * positives).sum() / positives.sum().clamp(min=1e-6)


def _indicator(pairs: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_array:
    ones = np.ones(pairs.shape[1], dtype=np.float32)
    return sparse.csr_array((ones, (pairs[0], pairs[1])), shape=shape)


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Platt scaling (1999): log odds = slope · lift + bias, lift = score − log mean exp of the reference's scores."""

    slope: float
    bias: float

    @classmethod
    def fit(cls, lifts: NDArray[np.float32], labels: NDArray[np.bool_], *, tested_share: float) -> Calibrator:
        """Fit on pairs.

        Args:
            lifts: shape (N,).
            labels: whether the pair was a hidden event, shape (N,).
            tested_share: of all users, the share whose pairs these are: only those who have a hidden event.
        """
        from sklearn.linear_model import LogisticRegression

        if labels.all() or not labels.any():
            return cls(1.0, 0.0)
        model = LogisticRegression(C=1e3).fit(lifts[:, None], labels)
        return cls(float(max(model.coef_[0, 0], 1e-3)), float(model.intercept_[0] + np.log(tested_share)))

    def __call__(self, lifts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log odds, of the same shape."""
        return (self.slope * lifts + self.bias).astype(np.float32)
