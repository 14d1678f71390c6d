"""The metric core: ranked lists against hidden positives, what the lists look like, and intervals for differences.

Every ranking metric comes as one number a user, so that differences can be paired. Relevance is binary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from scipy import sparse

KS: Final = (10, 20, 50)
METRICS: Final = ("recall", "ndcg", "hit", "mrr")
SIGNIFICANCE: Final = 0.05
"""Level of Holm-corrected p-values below which a difference is called shown."""


def top_k(
    scores: NDArray[np.floating[Any]],
    k: int,
    rng: np.random.Generator,
    *,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Columns of the k greatest scores of each row, best first; equal scores come in random order.

    Scores within 1e-6 of the row's greatest absolute score count as equal, since products of matrices give equal rows
    results that differ in the last digits.

    Args:
        scores: finite. Shape (B, I).
        k: list length.
        rng: breaks the ties.
        allowed: what may be shown; ``None`` means everything. Shape (B, I).

    Returns:
        Shape (B, k), -1 where a row has fewer allowed columns.
    """
    k_there = min(k, scores.shape[1])
    scale = np.maximum(np.abs(scores).max(axis=1, keepdims=True, initial=0.0), 1e-30)
    order = np.round(scores / scale, 6) + rng.random(scores.shape) * 5e-7
    if allowed is not None:
        order[~allowed] = -np.inf
    best = np.argpartition(-order, k_there - 1, axis=1)[:, :k_there] if k_there else np.empty((len(scores), 0), int)
    values = np.take_along_axis(order, best, axis=1)
    by_score = np.argsort(-values, axis=1)
    best = np.take_along_axis(best, by_score, axis=1)
    best = np.where(np.isneginf(np.take_along_axis(values, by_score, axis=1)), -1, best)
    return np.pad(best, ((0, 0), (0, k - k_there)), constant_values=-1).astype(np.int64)


def hits(recommended: NDArray[np.int64], relevant: sparse.csr_array) -> NDArray[np.bool_]:
    """Which slots hold a positive of their user.

    Args:
        recommended: item_nums, best first, -1 where a list ends early. Shape (B, K).
        relevant: non-zero where the item is a positive of the user. Shape (B, I).

    Returns:
        Shape (B, K).

    Raises:
        ValueError: rows differ in number, an item_num is out of range, or a list shows an item twice.
    """
    n_users, n_items = relevant.shape
    if recommended.ndim != 2 or len(recommended) != n_users:
        raise ValueError(
            f"recommended has shape {recommended.shape}, relevant {relevant.shape}; one row a user in both"
        )
    if recommended.size and not (recommended.min() >= -1 and recommended.max() < n_items):
        raise ValueError(
            f"item_nums run from {recommended.min()} to {recommended.max()}; expected -1 (no item) to {n_items - 1}"
        )
    ordered = np.sort(recommended, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row, column = np.argwhere(twice)[0]
        raise ValueError(f"the list of row {row} shows item {ordered[row, column]} twice; a list holds an item once")
    users, items = _pairs(relevant)
    known = np.sort(users * n_items + items)
    asked = np.arange(n_users)[:, None] * n_items + recommended
    found = np.zeros(recommended.shape, dtype=bool)
    if len(known):
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        found = (known[place] == asked) & (recommended >= 0)
    return found


def ranking_metrics(
    recommended: NDArray[np.int64], relevant: sparse.csr_array, ks: Sequence[int] = KS
) -> dict[str, NDArray[np.float64]]:
    """Recall, NDCG, hit rate and reciprocal rank at each k, one number a user.

    With h_r = 1 where rank r holds a positive and P positives: recall@k = Σ_{r≤k} h_r / P (not min(k, P));
    NDCG@k = Σ_{r≤k} h_r / log2(1 + r) over the same sum for the best list, whose first min(k, P) ranks are hits
    (Järvelin & Kekäläinen 2002, binary gains); hit@k = 1 where a hit is among the first k; mrr@k = 1 / rank of the
    first hit, 0 where it is beyond k.

    Args:
        recommended: item_nums, best first, -1 where a list ends early. Shape (B, K), K ≥ max(ks).
        relevant: non-zero where the item is a positive of the user; at least one a row. Shape (B, I).
        ks: list lengths.

    Returns:
        ``"ndcg@20"`` and the like → shape (B,).

    Raises:
        ValueError: as ``hits``; a list shorter than max(ks); a user without a positive.
    """
    if recommended.shape[1] < max(ks):
        raise ValueError(
            f"lists hold {recommended.shape[1]} slots, k goes to {max(ks)}; ask for longer lists or pad with -1"
        )
    found = hits(recommended, relevant)
    n_positives = _n_positives(relevant)
    gains = found * _discounts(recommended.shape[1])
    best = np.concatenate([[0.0], np.cumsum(_discounts(max(ks)))])
    first = np.where(found.any(axis=1), found.argmax(axis=1), recommended.shape[1])
    result = {}
    for k in ks:
        result[f"recall@{k}"] = found[:, :k].sum(axis=1) / n_positives
        result[f"ndcg@{k}"] = gains[:, :k].sum(axis=1) / best[np.minimum(n_positives, k)]
        result[f"hit@{k}"] = (first < k).astype(np.float64)
        result[f"mrr@{k}"] = np.where(first < k, 1.0 / (1.0 + first), 0.0)
    return result


def ndcg_by_item(
    recommended: NDArray[np.int64], relevant: sparse.csr_array, k: int = 20
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each item's part in the mean NDCG@k over users, so that items can be resampled.

    A positive of a user with P positives brings its discounted gain over the user's best sum, and counts as 1 / P of a
    user. The sum of the first array over the sum of the second is the mean over users.

    Returns:
        (gains, counts), each of shape (I,); both are 0 for an item that is nobody's positive.
    """
    found = hits(recommended[:, :k], relevant)
    n_positives = _n_positives(relevant)
    best = np.cumsum(_discounts(k))[np.minimum(n_positives, k) - 1]
    parts = found * _discounts(found.shape[1]) / best[:, None]
    n_items = relevant.shape[1]
    gains = np.bincount(recommended[:, :k][found], weights=parts[found], minlength=n_items)
    users, items = _pairs(relevant)
    counts = np.bincount(items, weights=1.0 / n_positives[users], minlength=n_items)
    return gains.astype(np.float64), counts.astype(np.float64)


def coverage(recommended: NDArray[np.int64], pool: NDArray[np.bool_]) -> float:
    """Share of the pool's items that at least one list shows. ``pool`` has shape (I,)."""
    shown = _exposure(recommended, len(pool)) > 0
    return float(shown[pool].mean()) if pool.any() else 0.0


def gini(recommended: NDArray[np.int64], pool: NDArray[np.bool_]) -> float:
    """Gini index of how often the pool's items are shown: 0 all alike, towards 1 one item takes every slot."""
    counts = np.sort(_exposure(recommended, len(pool))[pool])
    if not counts.sum():
        return 0.0
    n_items = len(counts)
    ranks = 2 * np.arange(1, n_items + 1) - n_items - 1
    return float((ranks * counts).sum() / (n_items * counts.sum()))


def cold_share(recommended: NDArray[np.int64], cold: NDArray[np.bool_]) -> float:
    """Share of the filled slots that hold a cold item. ``cold`` has shape (I,)."""
    shown = recommended[recommended >= 0]
    return float(cold[shown].mean()) if len(shown) else 0.0


def novelty(recommended: NDArray[np.int64], n_events: NDArray[np.int64], n_users: int) -> float:
    """Mean self-information of a shown item in bits, -log2((n + 1) / (U + 1)) with n customers of U (Zhou et al. 2010).

    The added one keeps it finite for cold items, which all have the same, highest value.
    """
    bits = -np.log2((n_events + 1.0) / (n_users + 1.0))
    shown = recommended[recommended >= 0]
    return float(bits[shown].mean()) if len(shown) else 0.0


def diversity(recommended: NDArray[np.int64], vectors: sparse.csr_array) -> NDArray[np.float64]:
    """Mean cosine distance over the pairs of a list (Ziegler et al. 2005, as a distance). One number a list.

    Args:
        recommended: shape (B, K).
        vectors: item vectors; rows need not be normalised, an empty row is at distance 1 from all. Shape (I, D).

    Returns:
        Shape (B,), nan for lists of fewer than two items.
    """
    unit = _unit_rows(vectors)
    lists = _indicator(recommended, unit.shape[0])
    sums = lists @ unit
    squared = np.asarray(sums.multiply(sums).sum(axis=1)).ravel()
    filled = np.asarray(unit.multiply(unit).sum(axis=1)).ravel()
    own = lists @ filled
    n_pairs = (recommended >= 0).sum(axis=1).astype(np.float64)
    n_pairs *= n_pairs - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(n_pairs > 0, 1.0 - (squared - own) / n_pairs, np.nan), dtype=np.float64)


def miscalibration(
    recommended: NDArray[np.int64], histories: sparse.csr_array, categories: sparse.csr_array, alpha: float = 0.01
) -> NDArray[np.float64]:
    """How far a list's mix of categories is from the history's: Kullback-Leibler divergence in nats (Steck 2018).

    KL(p || (1 - α) q + α p); each item spreads a weight of 1 over its categories. 0 is perfectly calibrated.

    Args:
        recommended: shape (B, K).
        histories: non-zero where the user has interacted with the item. Shape (B, I).
        categories: non-zero where the item is in the category. Shape (I, C).
        alpha: smoothing.

    Returns:
        Shape (B,), nan where history or list has no item with a category.
    """
    spread = _rows_to_one(categories)
    p = _rows_to_one(_binary(histories) @ spread)
    q = _rows_to_one(_indicator(recommended, categories.shape[0]) @ spread)
    wanted = p.tocoo()
    shown = np.asarray(q.tocsr()[wanted.row, wanted.col]).ravel()
    parts = wanted.data * np.log(wanted.data / ((1 - alpha) * shown + alpha * wanted.data))
    divergence = np.bincount(wanted.row, weights=parts, minlength=p.shape[0])
    known = (np.diff(p.indptr) > 0) & (np.diff(q.indptr) > 0)
    return np.asarray(np.where(known, np.maximum(divergence, 0.0), np.nan), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Interval:
    """Ours against theirs, paired: means, difference and ratio with percentile intervals of level ``level``."""

    ours: float
    theirs: float
    difference: float
    difference_low: float
    difference_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    p_value: float
    level: float
    n: int
    """Number of resampled units (users, or items)."""

    def to_json(self) -> dict[str, float | None]:
        """The numbers by name; what is not defined is ``None``, since JSON has no nan."""
        return {name: value if isfinite(value) else None for name, value in asdict(self).items()}


def paired_bootstrap(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    *,
    counts: NDArray[np.float64] | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of mean(ours) - mean(theirs) and of their ratio, drawing the same units for both.

    Args:
        ours, theirs: one number a unit; ``ranking_metrics`` for users, the gains of ``ndcg_by_item`` for items, or sums
            over several splits for users who occur in many. Shape (N,).
        counts: what a unit counts for; the mean is Σ values / Σ counts. ``None`` means 1 each. Shape (N,).
        n_resamples: draws of N units with replacement.
        level: of the two-sided intervals.
        seed: same seed, same interval.

    Returns:
        The interval; ``p_value`` is two-sided, twice the smaller share of resamples on either side of 0 (at least
        1 / (n_resamples + 1)). The ratio is nan where theirs is 0, and its bounds where theirs of a resample is.

    Raises:
        ValueError: arrays of different shapes, or empty.
    """
    counts = np.ones(len(ours)) if counts is None else counts
    if not (ours.shape == theirs.shape == counts.shape and ours.ndim == 1 and len(ours)):
        raise ValueError(f"shapes {ours.shape}, {theirs.shape}, {counts.shape}; expected the same (N,) with N ≥ 1")
    values = np.stack([ours, theirs, counts], axis=1).astype(np.float64)
    values = values[(values != 0).any(axis=1)] if counts.any() else values
    n_units = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((n_resamples, 2))
    step = max(1, 4_000_000 // n_units)  # about 100 MB of draws at a time
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        drawn = rng.integers(0, n_units, size=(stop - start, n_units))
        weights = np.stack([np.bincount(row, minlength=n_units) for row in drawn])
        sums = weights @ values
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start:stop] = sums[:, :2] / sums[:, 2:]
    tails = [50 * (1 - level), 50 * (1 + level)]
    differences = means[:, 0] - means[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = means[:, 0] / means[:, 1]
        mean_ours, mean_theirs = values[:, :2].sum(axis=0) / values[:, 2].sum()
        ratio = mean_ours / mean_theirs if mean_theirs else np.nan
    sided = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    low, high = np.nanpercentile(differences, tails)
    finite = ratios[np.isfinite(ratios)]
    ratio_low, ratio_high = np.percentile(finite, tails) if len(finite) == n_resamples else (np.nan, np.nan)
    return Interval(
        ours=float(mean_ours),
        theirs=float(mean_theirs),
        difference=float(mean_ours - mean_theirs),
        difference_low=float(low),
        difference_high=float(high),
        ratio=float(ratio),
        ratio_low=float(ratio_low),
        ratio_high=float(ratio_high),
        p_value=float(min(1.0, 2 * (sided + 1) / (n_resamples + 1))),
        level=level,
        n=n_units,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) step-down correction for several comparisons: adjusted p-values, comparable with one threshold."""
    adjusted = {}
    worst = 0.0
    for rank, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def _discounts(k: int) -> NDArray[np.float64]:
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)), dtype=np.float64)


def _pairs(relevant: sparse.csr_array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    users = np.repeat(np.arange(relevant.shape[0], dtype=np.int64), np.diff(relevant.indptr))
    there = relevant.data != 0
    pairs = np.unique(np.stack([users[there], relevant.indices[there].astype(np.int64)]), axis=1)
    return pairs[0], pairs[1]


def _n_positives(relevant: sparse.csr_array) -> NDArray[np.int64]:
    n_positives = np.bincount(_pairs(relevant)[0], minlength=relevant.shape[0])
    if not n_positives.all():
        raise ValueError(
            f"{int((n_positives == 0).sum())} of {len(n_positives)} users have no positive; leave them out"
        )
    return n_positives


def _exposure(recommended: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    return np.bincount(recommended[recommended >= 0], minlength=n_items)


def _indicator(recommended: NDArray[np.int64], n_items: int) -> sparse.csr_array:
    from scipy import sparse

    filled = recommended >= 0
    ends = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    return sparse.csr_array((np.ones(int(ends[-1])), recommended[filled], ends), shape=(len(recommended), n_items))


def _binary(matrix: sparse.csr_array) -> sparse.csr_array:
    matrix = matrix.astype(np.float64)
    matrix.data = (matrix.data != 0).astype(np.float64)
    return matrix


def _scale_rows(matrix: sparse.csr_array, lengths: NDArray[np.float64]) -> sparse.csr_array:
    from scipy import sparse

    with np.errstate(divide="ignore"):
        factors = np.where(lengths > 0, 1.0 / lengths, 0.0)
    return sparse.csr_array(sparse.diags_array(factors) @ matrix)


def _unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    matrix = matrix.astype(np.float64)
    return _scale_rows(matrix, np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel()))


def _rows_to_one(matrix: sparse.csr_array) -> sparse.csr_array:
    scaled = _scale_rows(matrix, np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel())
    scaled.eliminate_zeros()
    return scaled
