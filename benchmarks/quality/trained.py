"""Baselines that are trained by gradient, each in its simplest faithful form, in PyTorch on the CPU.

All see the same content features (TF-IDF SVD 256 + MiniLM 384). Each trains on ``case.inner()`` until NDCG@20 of the
pseudo-cold items has not risen for some epochs, then on the whole case for as many epochs as were best. User tables and
item tables cover training users and warm items alone; a new item has nothing but its features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from baselines import Fitted, Scorer, _features, _row_normal, pair_split, rank
from scipy import sparse
from torch import nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize, softplus

from recommender.metrics import ranking_metrics

if TYPE_CHECKING:
    from baselines import Floats
    from cases import Case
    from numpy.typing import NDArray

_SIZE: Final = 128
_BATCH: Final = 1024
_PATIENCE: Final = 4
_MAX_EPOCHS: Final = 40
_TEST_USERS: Final = 2000

Training = Callable[["Case"], Iterator[Scorer]]
"""Yields the scorer after every epoch; it is used before the next epoch begins."""


def content_head(case: Case) -> Fitted:
    """A linear head over the features, the user as the mean of the history, softmax over warm items (after SEMCo).

    Σ -log softmax(cos(mean of the other history items, target) / .07) against 2,048 sampled warm items.
    """

    def train(case: Case) -> Iterator[Scorer]:
        rng, features = _start(case)
        head = nn.Linear(features.shape[1], 2 * _SIZE)
        optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
        pairs = _Pairs(case)
        histories = _row_normal(case.train)
        lengths = np.asarray(case.train.sum(axis=1)).ravel()
        while True:
            for users, items in pairs.epoch(rng):
                keep = lengths[users] > 1
                users, items = users[keep], items[keep]
                negatives = rng.choice(case.warm_nums, size=min(2048, len(case.warm_nums)), replace=False)
                rows = case.train[users]
                nums = np.unique(np.concatenate([rows.indices, items, negatives]))
                place = np.full(len(case.items), -1)
                place[nums] = np.arange(len(nums))
                vectors = normalize(head(features[nums]), dim=1)
                counts = torch.from_numpy(lengths[users, None].astype(np.float32))
                history = _sparse(rows[:, nums]) @ vectors
                positive = vectors[place[items]]
                user = normalize((history - positive) / (counts - 1), dim=1)
                logits = torch.cat([(user * positive).sum(1, keepdim=True), user @ vectors[place[negatives]].T], dim=1)
                own = torch.from_numpy(rows[:, negatives].toarray() > 0)
                logits[:, 1:] = logits[:, 1:].masked_fill(own, -1.0)
                _step(optimiser, cross_entropy(logits / 0.07, torch.zeros(len(users), dtype=torch.long)))
            with torch.no_grad():
                vectors = normalize(head(features), dim=1).numpy()
            yield _inner_product(histories @ vectors, vectors)

    return _trained(case, train)


def dropoutnet(case: Case) -> Fitted:
    """DropoutNet (Volkovs et al. 2017): two towers regress the products of SVD factors; half the items lose theirs."""

    def train(case: Case) -> Iterator[Scorer]:
        rng, features = _start(case)
        user_factors, item_factors = _factors(case, _SIZE)
        users, items = (torch.from_numpy(factors) for factors in (user_factors, item_factors))
        user_tower = _mlp(_SIZE, _SIZE)
        item_tower = _mlp(_SIZE + features.shape[1], _SIZE)
        optimiser = torch.optim.Adam([*user_tower.parameters(), *item_tower.parameters()], lr=1e-3)
        warm = case.warm_nums
        while True:
            for rows in np.array_split(rng.permutation(len(case.users)), max(1, len(case.users) // 256)):
                chosen = rng.choice(warm, size=min(1024, len(warm)), replace=False)
                kept = torch.from_numpy((rng.random(len(chosen)) < 0.5).astype(np.float32))[:, None]
                target = users[rows] @ items[chosen].T
                found = user_tower(users[rows]) @ item_tower(torch.cat([items[chosen] * kept, features[chosen]], 1)).T
                # Few pairs are large: as many random ones as there are positives would drown them.
                weight = 1 + 20 * torch.from_numpy(case.train[rows][:, chosen].toarray())
                _step(optimiser, (weight * (found - target) ** 2).mean())
            with torch.no_grad():
                known = torch.from_numpy((case.n_events > 0).astype(np.float32))[:, None]
                vectors = item_tower(torch.cat([items * known, features], dim=1)).numpy()
                yield _inner_product(user_tower(users).numpy(), vectors)

    return _trained(case, train)


def clcrec(case: Case) -> Fitted:
    """CLCRec (Wei et al. 2021): contrast users with items, and an item's table vector with its encoded features."""

    def train(case: Case) -> Iterator[Scorer]:
        rng, features = _start(case)
        user_table = nn.Embedding(len(case.users), _SIZE)
        item_table = nn.Embedding(len(case.items), _SIZE)
        encoder = _mlp(features.shape[1], _SIZE)
        for table in (user_table, item_table):
            nn.init.normal_(table.weight, std=0.1)
        optimiser = torch.optim.Adam(
            [*user_table.parameters(), *item_table.parameters(), *encoder.parameters()], lr=2e-3
        )
        pairs = _Pairs(case)
        while True:
            for users, items in pairs.epoch(rng):
                nums = np.concatenate([items, rng.choice(case.warm_nums, size=min(512, len(case.warm_nums)))])
                user = normalize(user_table(torch.from_numpy(users)), dim=1)
                table = normalize(item_table(torch.from_numpy(nums)), dim=1)
                content = normalize(encoder(features[nums]), dim=1)
                # The hybrid item: its table vector, or in half of the cases its content in its place.
                swapped = torch.from_numpy(rng.random(len(nums)) < 0.5)[:, None]
                mixed = torch.where(swapped, content, table)
                own = torch.from_numpy(nums[None, :] == items[:, None])
                own[np.arange(len(items)), np.arange(len(items))] = False
                target = torch.arange(len(items))
                by_user = cross_entropy((user @ mixed.T / 0.1).masked_fill(own, -1e9), target)
                by_item = cross_entropy((table[: len(items)] @ content.T / 0.1).masked_fill(own, -1e9), target)
                _step(optimiser, 0.5 * by_user + 0.5 * by_item)
            with torch.no_grad():
                content = normalize(encoder(features), dim=1).numpy()
                known = (case.n_events > 0)[:, None]
                items_ = np.where(known, normalize(item_table.weight, dim=1).numpy(), content)
                yield _inner_product(normalize(user_table.weight, dim=1).numpy(), items_)

    return _trained(case, train)


def aldi(case: Case) -> Fitted:
    """ALDI (Huang et al. 2023): a content student learns from a collaborative teacher how it orders pairs of items.

    Teacher: SVD factors (the paper's is a matrix factorisation). Losses: BPR of the student, the teacher's difference
    of a pair (soft labels), and that in-batch items are told apart alike. The student's users are mapped ones.
    """

    def train(case: Case) -> Iterator[Scorer]:
        rng, features = _start(case)
        user_factors, item_factors = _factors(case, _SIZE)
        scale = np.abs(user_factors @ item_factors[case.warm_nums].T).max() / 5
        users, items = torch.from_numpy(user_factors / scale), torch.from_numpy(item_factors)
        user_tower, item_tower = _mlp(_SIZE, _SIZE), _mlp(features.shape[1], _SIZE)
        optimiser = torch.optim.Adam([*user_tower.parameters(), *item_tower.parameters()], lr=1e-3)
        pairs = _Pairs(case)
        while True:
            for rows, positives in pairs.epoch(rng):
                negatives = rng.choice(case.warm_nums, size=len(positives))
                student = user_tower(users[rows])
                good, bad = item_tower(features[positives]), item_tower(features[negatives])
                difference = (student * (good - bad)).sum(1)
                taught = (users[rows] * (items[positives] - items[negatives])).sum(1)
                ranking = -logsigmoid(difference).mean()
                soft = torch.sigmoid(taught)
                distilled = (softplus(difference) - soft * difference).mean()
                among = cross_entropy(student @ good.T, torch.softmax(users[rows] @ items[positives].T, dim=1))
                _step(optimiser, ranking + distilled + 0.1 * among)
            with torch.no_grad():
                yield _inner_product(user_tower(users).numpy(), item_tower(features).numpy())

    return _trained(case, train)


def lightgcn(case: Case) -> Fitted:
    """LightGCN (He et al. 2020): 3 layers, BPR. Knows nothing of new items: all of them score 0."""

    def train(case: Case) -> Iterator[Scorer]:
        torch.manual_seed(case.seed)
        rng = np.random.default_rng(case.seed)
        n_users, n_items = case.train.shape
        both = sparse.csr_array(sparse.block_array([[None, case.train], [case.train.T, None]]))
        degree = np.maximum(np.asarray(both.sum(axis=1)).ravel(), 1).astype(np.float32) ** -0.5
        norm = _sparse(sparse.csr_array(sparse.diags_array(degree) @ both @ sparse.diags_array(degree)))
        norm = norm.to_sparse_csr()
        table = nn.Embedding(n_users + n_items, 64)
        nn.init.normal_(table.weight, std=0.1)
        optimiser = torch.optim.Adam(table.parameters(), lr=5e-3)
        # Every step propagates over the whole graph: a pass takes at most 16 of them, however many events there are.
        pairs = _Pairs(case, batch=max(4096, -(-case.train.nnz // 16)))
        cold = torch.from_numpy(case.n_events == 0)
        while True:
            for _ in range(5):  # an "epoch" of early stopping is five passes
                for users, items in pairs.epoch(rng):
                    vectors = _propagated(norm, table.weight)
                    negatives = rng.choice(case.warm_nums, size=len(items))
                    user, good, bad = (vectors[nums] for nums in (users, n_users + items, n_users + negatives))
                    first = table.weight[np.concatenate([users, n_users + items, n_users + negatives])]
                    loss = -logsigmoid((user * (good - bad)).sum(1)).mean()
                    _step(optimiser, loss + 1e-4 * first.pow(2).sum() / len(users))
            with torch.no_grad():
                vectors = _propagated(norm, table.weight)
                items_ = vectors[n_users:].masked_fill(cold[:, None], 0.0)
                yield _inner_product(vectors[:n_users].numpy(), items_.numpy())

    return _trained(case, train, warm=True)


TRAINED: Final = {method.__name__: method for method in (content_head, dropoutnet, clcrec, aldi, lightgcn)}


def _trained(case: Case, train: Training, *, warm: bool = False) -> Fitted:
    """Train for the number of epochs that ranks the inner case's hidden part best."""
    inner = pair_split(case) if warm else case.inner()
    pool = np.ones(len(case.items), dtype=bool) if warm else inner.new
    users = inner.test_users(pool)
    users = np.sort(np.random.default_rng(case.seed).permutation(users)[:_TEST_USERS])
    relevant = sparse.csr_array(inner.truth[users] @ sparse.diags_array(pool.astype(np.float32)))
    best, best_epoch = -1.0, 0
    for epoch, scorer in enumerate(train(inner), start=1):
        quality = float(ranking_metrics(rank(inner, scorer, users, pool), relevant)["ndcg@20"].mean())
        if quality > best:
            best, best_epoch = quality, epoch
        if epoch - best_epoch >= _PATIENCE or epoch == _MAX_EPOCHS:
            break
    for epoch, scorer in enumerate(train(case), start=1):
        if epoch == best_epoch:
            return Fitted(scorer, {"epochs": best_epoch, "inner_ndcg@20": round(best, 4)})
    raise AssertionError("a training yields for ever")


class _Pairs:
    """The training pairs, shuffled into batches."""

    def __init__(self, case: Case, batch: int = _BATCH) -> None:
        self._users = np.repeat(np.arange(len(case.users)), np.diff(case.train.indptr))
        self._items = case.train.indices.astype(np.int64)
        self._batch = batch

    def epoch(self, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        order = rng.permutation(len(self._users))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            yield self._users[rows], self._items[rows]


def _start(case: Case) -> tuple[np.random.Generator, torch.Tensor]:
    torch.manual_seed(case.seed)
    features = _features(case)[:, :-1]
    return np.random.default_rng(case.seed), torch.from_numpy(features / (features.std() + 1e-9))


def _factors(case: Case, size: int) -> tuple[Floats, Floats]:
    """SVD factors of the interactions, popular items damped; rows of cold items are 0."""
    from sklearn.utils.extmath import randomized_svd

    damped = case.train @ sparse.diags_array(np.maximum(case.n_events, 1).astype(np.float32) ** -0.5)
    left, values, right = randomized_svd(sparse.csr_array(damped), size, random_state=case.seed)
    root = np.sqrt(values)
    spread = np.sqrt(np.sqrt(len(left) * right.shape[1]) / values.sum())
    return (left * root * spread).astype(np.float32), (right.T * root * spread).astype(np.float32)


def _mlp(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, 256), nn.Tanh(), nn.Linear(256, n_outputs))


def _step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _propagated(norm: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    total = vectors
    for _ in range(3):
        vectors = _SymmetricProduct.apply(norm, vectors)
        total = total + vectors
    return total / 4


class _SymmetricProduct(torch.autograd.Function):
    """matrix @ vectors. The matrix is its own transpose, which torch would sort anew at every step."""

    @staticmethod
    def forward(context: Any, matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        context.matrix = matrix
        return matrix @ vectors

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, context.matrix @ gradient


def _sparse(matrix: sparse.csr_array) -> torch.Tensor:
    matrix = matrix.tocoo()
    places = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
    return torch.sparse_coo_tensor(places, torch.from_numpy(matrix.data), matrix.shape, check_invariants=False)


def _inner_product(users: Floats, items: Floats) -> Scorer:
    return lambda rows, columns: users[rows] @ items[columns].T
