"""``evaluate``: how well new items would have been recommended, on the shop's own data, beside simple methods.

A part of what is known is hidden, a model is trained on the rest in memory (the workspace is only read), and its lists
are compared with what was hidden. EASE with text, text alone, popularity and chance rank the same items for the same
users.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from kg import schema, snapshot
from kg.errors import WorkspaceError
from recommender import metrics
from recommender.splits import GraphSplit, ProtocolName, cut_graph, default_cut, parse_time, split_graph

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from kg.snapshot import KnowledgeGraph
    from kg.workspace import Workspace

Pool = Literal["new", "all"]
Progress = Callable[[str, int, int], None]
"""Called with the stage, the steps done and the steps in all."""

BUCKETS: Final = {"0": (0, 0), "1-5": (1, 5), "6-20": (6, 20), ">20": (21, None), "warm": (1, None)}
"""Training events of an item; ``warm`` is all but the first."""
WARM_SHARE: Final = 0.1
"""Share of the remaining pairs that protocol ``items`` hides, so that lists of all items have warm positives too."""
PRODUCT: Final = "firstshelf"
BASELINES: Final = ("text+ease", "tfidf", "popularity", "random")
_USERS_AT_ONCE: Final = 1000
_EASE_L2: Final = 50.0
_N_CARRIED: Final = 20
_CARRIED: Final = 0.6
"""Weight of EASE beside the words of new items, both as z-norms; so in the untrained blend of the benchmarks, too."""


class Ranking(Protocol):
    """What a ranker answers: ``item_nums`` best first, -1 padded, shape (B, K)."""

    @property
    def item_nums(self) -> NDArray[np.int64]:
        """Shape (B, K)."""


class RanksItems(Protocol):
    """What is evaluated: ``recommender.ranker.Ranker``, or anything that ranks as it does."""

    def rank(self, histories: sparse.csr_array, *, k: int, pool: Pool) -> Ranking:
        """Lists for histories of shape (B, I), as ``KnowledgeGraph.histories``; ``new`` holds items without events."""


Fit = Callable[["KnowledgeGraph", int, "Progress | None"], RanksItems]
"""(graph to train on, seed, progress) -> what ranks its items."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one split and pool: ``measures`` as ``measure`` gives them."""

    method: str
    pool: Pool
    seed: int
    n_users: int
    seconds: float
    measures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The product against one method, over all seeds; ``p_value`` of the interval is Holm-corrected in ``p_holm``."""

    method: str
    pool: Pool
    metric: str
    over: Literal["users", "new items"]
    interval: metrics.Interval
    p_holm: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured. ``str()`` of it is a table for people."""

    protocol: ProtocolName
    cut: int | None
    k: int
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        comparisons = [{**asdict(found), "interval": found.interval.to_json()} for found in self.comparisons]
        return {**asdict(self), "comparisons": comparisons}

    def to_pandas(self) -> pd.DataFrame:
        """One row per method, pool, seed and number: columns method, pool, seed, bucket, measure, value."""
        import pandas as pd

        rows = []
        for cell in self.cells:
            groups = {"": cell.measures, **cell.measures["buckets"]}
            for bucket, values in groups.items():
                for name, value in values.items():
                    if isinstance(value, int | float):
                        rows.append((cell.method, cell.pool, cell.seed, bucket, name, value))
        return pd.DataFrame(rows, columns=["method", "pool", "seed", "bucket", "measure", "value"])

    def mean(self, method: str, pool: Pool, measure: str, bucket: str = "") -> float:
        """Mean over the seeds of one number; nan where no seed has it."""
        values = []
        for cell in self.cells:
            if (cell.method, cell.pool) == (method, pool):
                value = (cell.measures["buckets"].get(bucket, {}) if bucket else cell.measures).get(measure)
                values.append(np.nan if value is None else value)
        known = [value for value in values if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    def __str__(self) -> str:
        return "\n".join(_table(self))


def evaluate(
    workspace: Workspace,
    *,
    protocol: ProtocolName = "items",
    cut: str | int | None = None,
    seeds: Sequence[int] = (0,),
    k: int = 20,
    fit: Fit | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure on the shop's own data how well new items are recommended.

    Protocol ``items`` makes a fifth of the sold items new (and hides a tenth of the other pairs, to measure the rest);
    ``time`` hides everything from a cut on. A model is trained from scratch for every seed. The workspace, its graph
    and its model stay as they are. ``also_bought`` lists stay between known items: of these they may tell what is
    hidden, of new ones they do not.

    Args:
        workspace: a workspace with loaded data; it need not be trained.
        protocol: see above.
        cut: for ``time``, an ISO date or epoch seconds UTC; ``None`` takes the time from which on a fifth of the sold
            items was first sold.
        seeds: of the hidden items and of the training; with ``time``, of the training alone.
        k: list length of what is shown and compared.
        fit: trains what is to be evaluated; ``None`` takes the product's ``Ranker.fit``.
        progress: called with the stage, steps done, steps in all.

    Raises:
        ValueError: no seed, k < 1, or a cut for protocol ``items``.
        SourceError: too few data to hide any, or a time split without a clock.
        WorkspaceError: nothing is loaded, or the last load did not finish.
        TrainingError: what stays cannot train anything.
    """
    if not seeds or k < 1:
        raise ValueError(f"seeds {list(seeds)} and k {k}; expected at least one seed and k of at least 1")
    if cut is not None and protocol != "time":
        raise ValueError(f"cut {cut!r} is for protocol 'time', and the protocol is {protocol!r}; leave one of them out")
    started = time.perf_counter()
    at: int | None = None
    with closing(workspace.open_store()) as store:
        if store.get_mark() is None:
            raise WorkspaceError(
                f"workspace {str(workspace.path)!r} holds no finished load; run: "
                f"firstshelf ingest FOLDER --workspace {workspace.path}"
            )
        graph = snapshot(store, until=None)
        if protocol == "time":
            at = default_cut(graph) if cut is None else parse_time(cut)
            known = snapshot(store, until=at - 1)

    def splits() -> Iterator[tuple[int, GraphSplit]]:
        for seed in seeds:
            if at is not None:
                yield seed, cut_graph(graph, known, at)
            else:
                yield seed, split_graph(graph, seed=seed, warm_share=WARM_SHARE)

    cells, comparisons = evaluate_splits(splits(), fit or _fit_ranker, n_splits=len(seeds), k=k, progress=progress)
    return Evaluation(protocol, at, k, cells, comparisons, round(time.perf_counter() - started, 1))


def evaluate_splits(
    splits: Iterable[tuple[int, GraphSplit]],
    fit: Fit,
    *,
    n_splits: int,
    k: int = 20,
    progress: Progress | None = None,
) -> tuple[tuple[Cell, ...], tuple[Comparison, ...]]:
    """Train and compare on splits, (seed, split) each; the part of ``evaluate`` that needs no workspace."""
    cells: list[Cell] = []
    gathered: dict[tuple[str, Pool], list[_Scores]] = {}
    ks = sorted({*metrics.KS, k})
    for done, (seed, split) in enumerate(splits):
        if progress is not None:
            progress("evaluate", done, n_splits)
        histories = split.graph.histories
        words, categories = _words(split.graph), split.graph.matrix(schema.IN_CATEGORY, binary=True)
        pools: dict[Pool, NDArray[np.bool_]] = {"new": split.cold, "all": np.ones_like(split.cold)}
        for method in (PRODUCT, *BASELINES):
            started = time.perf_counter()
            if method == PRODUCT:
                ranker = fit(split.graph, seed, progress)
            else:
                ranker = _Baseline(_scorer(method, split, words, seed), split, seed)
            for pool, shown in pools.items():
                relevant = _columns(split.hidden, shown)
                users = np.flatnonzero(np.diff(relevant.indptr))
                if not len(users):
                    continue
                lists = rank_all(ranker, histories[users], max(ks), pool)
                values = measure(
                    lists,
                    relevant[users],
                    histories=split.graph.interactions[users],
                    n_events=split.graph.n_events,
                    n_customers=int((np.diff(split.graph.interactions.indptr) > 0).sum()),
                    pool=shown,
                    vectors=words,
                    categories=categories,
                    ks=ks,
                    k=k,
                )
                seconds = round(time.perf_counter() - started, 2)
                cells.append(Cell(method, pool, seed, len(users), seconds, values))
                gathered.setdefault((method, pool), []).append(
                    _Scores.of(lists, relevant[users], users, split.graph, k)
                )
    if progress is not None:
        progress("evaluate", n_splits, n_splits)
    return tuple(cells), tuple(_comparisons(gathered, k))


def rank_all(ranker: RanksItems, histories: sparse.csr_array, k: int, pool: Pool) -> NDArray[np.int64]:
    """A ranker's lists for many histories, shape (B, I), some at a time. Shape (B, k), -1 padded."""
    lists = np.full((histories.shape[0], k), -1, dtype=np.int64)
    for start in range(0, len(lists), _USERS_AT_ONCE):
        found = ranker.rank(histories[start : start + _USERS_AT_ONCE], k=k, pool=pool).item_nums
        lists[start : start + len(found), : found.shape[1]] = found
    return lists


def measure(
    recommended: NDArray[np.int64],
    relevant: sparse.csr_array,
    *,
    histories: sparse.csr_array,
    n_events: NDArray[np.int64],
    n_customers: int,
    pool: NDArray[np.bool_],
    vectors: sparse.csr_array | None = None,
    categories: sparse.csr_array | None = None,
    ks: Sequence[int] = metrics.KS,
    k: int = 20,
) -> dict[str, Any]:
    """Every number about one set of lists, as JSON.

    ``buckets`` restricts the positives to items with so many training events (``BUCKETS``) and leaves the lists as
    they are; users without such a positive do not count there. The others look at the first k slots.

    Args:
        recommended: shape (B, K), K ≥ max(ks).
        relevant: hidden positives within the pool, at least one a row. Shape (B, I).
        histories: training interactions of the same users. Shape (B, I).
        n_events: training events of each item. Shape (I,).
        n_customers: with training events, for novelty.
        pool: what may be recommended. Shape (I,).
        vectors: for diversity; ``None`` leaves it out. Shape (I, D).
        categories: for miscalibration; ``None`` leaves it out. Shape (I, C).
        ks: list lengths.
        k: list length of everything beyond the ranking metrics.
    """
    per_user = metrics.ranking_metrics(recommended, relevant, ks)
    shown = recommended[:, :k]
    result: dict[str, Any] = {name: float(values.mean()) for name, values in per_user.items()}
    own = histories.multiply(_rows(shown, histories.shape[1])).nnz
    if own:
        raise AssertionError(f"{own} slots show a user's own item, which no recommender may")
    if not pool[shown[shown >= 0]].all():
        raise AssertionError("a list shows an item outside the pool that was asked for")
    result |= {
        "cold_share": metrics.cold_share(shown, n_events == 0),
        "coverage": metrics.coverage(shown, pool),
        "gini": metrics.gini(shown, pool),
        "novelty": metrics.novelty(shown, n_events, n_customers),
        "filled": float((shown >= 0).mean()),
        "n_items": int(pool.sum()),
        "n_hidden_items": len(np.unique(relevant.indices)),
    }
    if vectors is not None:
        result["diversity"] = _mean(metrics.diversity(shown, vectors))
    if categories is not None:
        result["miscalibration"] = _mean(metrics.miscalibration(shown, histories, categories))
    result["n_users"] = len(recommended)
    result["buckets"] = {}
    for name, (low, high) in BUCKETS.items():
        inside = (n_events >= low) & (n_events <= (np.iinfo(np.int64).max if high is None else high))
        part = _columns(relevant, inside)
        users = np.flatnonzero(np.diff(part.indptr))
        bucket: dict[str, float | int] = {"n_items": int((inside & pool).sum()), "n_positives": int(part.nnz)}
        if len(users):
            found = metrics.ranking_metrics(recommended[users], part[users], ks)
            bucket |= {metric: float(found[metric].mean()) for metric in (f"recall@{k}", f"ndcg@{k}")}
        result["buckets"][name] = bucket
    return result


@dataclass(frozen=True)
class _Scores:
    """NDCG@k of one split by user and by item, items in key order: a unit that is in several splits counts once."""

    by_user: NDArray[np.float64]
    users: NDArray[np.float64]
    by_item: NDArray[np.float64]
    items: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        lists: NDArray[np.int64],
        relevant: sparse.csr_array,
        users: NDArray[np.int64],
        graph: KnowledgeGraph,
        k: int,
    ) -> _Scores:
        by_user, counts = np.zeros((2, len(graph.users)))
        by_user[users], counts[users] = metrics.ranking_metrics(lists, relevant, [k])[f"ndcg@{k}"], 1
        gains, parts = metrics.ndcg_by_item(lists, relevant, k)
        by_key = np.argsort(np.array(graph.items.keys))
        return cls(by_user, counts, gains[by_key], parts[by_key])


def _comparisons(gathered: Mapping[tuple[str, Pool], list[_Scores]], k: int) -> Iterator[Comparison]:
    pools: tuple[Pool, ...] = ("new", "all")
    for pool in pools:
        ours = gathered.get((PRODUCT, pool), [])
        others = [method for method, of in gathered if of == pool and method != PRODUCT]
        sides: tuple[tuple[Literal["users", "new items"], str, str], ...] = (("users", "by_user", "users"),)
        if pool == "new":
            sides = (*sides, ("new items", "by_item", "items"))
        for over, values, counts in sides:
            intervals = {}
            for method in others:
                theirs = gathered[method, pool]
                intervals[method] = metrics.paired_bootstrap(
                    np.sum([getattr(scores, values) for scores in ours], axis=0),
                    np.sum([getattr(scores, values) for scores in theirs], axis=0),
                    counts=np.sum([getattr(scores, counts) for scores in ours], axis=0),
                )
            corrected = metrics.holm({method: interval.p_value for method, interval in intervals.items()})
            for method, interval in intervals.items():
                yield Comparison(method, pool, f"ndcg@{k}", over, interval, corrected[method])


def _fit_ranker(graph: KnowledgeGraph, seed: int, progress: Progress | None) -> RanksItems:
    from recommender.ranker import Ranker

    ranker: RanksItems = Ranker.fit(graph, seed=seed, progress=progress)
    return ranker


@dataclass(frozen=True)
class _Lists:
    item_nums: NDArray[np.int64]


_Scorer = Callable[["sparse.csr_array"], "NDArray[np.float32]"]
"""Binary histories, shape (B, I) -> scores of all items, shape (B, I)."""


class _Baseline:
    """Ranks by one simple score, the user's own items left out, ties at random."""

    def __init__(self, scorer: _Scorer, split: GraphSplit, seed: int) -> None:
        self._scorer = scorer
        self._cold = split.cold
        self._rng = np.random.default_rng(seed)

    def rank(self, histories: sparse.csr_array, *, k: int, pool: Pool) -> Ranking:
        own = histories.astype(bool).astype(np.float32)
        allowed = own.toarray() == 0
        if pool == "new":
            allowed &= self._cold
        return _Lists(metrics.top_k(self._scorer(own), k, self._rng, allowed=allowed))


def _scorer(method: str, split: GraphSplit, words: sparse.csr_array, seed: int) -> _Scorer:
    if method == "text+ease":
        return _text_and_ease(split, words)
    if method == "tfidf":
        return lambda own: _by_words(own, words)
    if method == "popularity":
        return lambda own: np.tile(split.graph.n_events.astype(np.float32), (own.shape[0], 1))
    rng = np.random.default_rng(seed)
    return lambda own: rng.random(own.shape, dtype=np.float32)


def _by_words(own: sparse.csr_array, words: sparse.csr_array) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = ((own @ words) @ words.T).toarray()
    return scores


def _text_and_ease(split: GraphSplit, words: sparse.csr_array) -> _Scorer:
    """Known items by EASE (ItemKNN in a large catalogue); new ones by TF-IDF plus what EASE says of their neighbours.

    These are the 20 known items nearest by TF-IDF, by whose cosines it is averaged. Every part is taken as a z-norm
    among the items of its kind, so that one list can be made of both kinds.
    """
    from recommender.collaborative import fit_item_model

    new, known = (np.flatnonzero(kind) for kind in (split.cold, ~split.cold))
    model = fit_item_model(split.graph.interactions[:, known], l2=_EASE_L2)
    nearest = _nearest(words, new, known, _N_CARRIED)

    def score(own: sparse.csr_array) -> NDArray[np.float32]:
        said = own[:, known] @ model
        said = said if isinstance(said, np.ndarray) else said.toarray()
        scores = np.empty(own.shape, dtype=np.float32)
        scores[:, known] = _z(said)
        scores[:, new] = _z(_by_words(own, words)[:, new]) + np.float32(_CARRIED) * _z((nearest @ said.T).T)
        return scores

    return score


def _nearest(words: sparse.csr_array, rows: NDArray[np.int64], columns: NDArray[np.int64], k: int) -> sparse.csr_array:
    """Cosines of items to the k nearest others, rows summing to 1 (or 0: near nothing). Shape (rows, columns)."""
    from scipy import sparse

    from encoders.content import top_of_rows

    others = words[columns].T
    starts = range(0, max(1, len(rows)), _USERS_AT_ONCE)
    blocks = (sparse.csr_array(words[rows[start : start + _USERS_AT_ONCE]] @ others) for start in starts)
    found = sparse.csr_array(sparse.vstack([top_of_rows(block, k) for block in blocks]))
    scale = (1 / np.maximum(found.sum(axis=1), 1e-9)).astype(np.float32)
    return sparse.csr_array(sparse.diags_array(scale) @ found)


def _z(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Less the mean of each row, over its deviation; a row that tells nothing apart is 0."""
    if not scores.shape[1]:
        return scores
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    out: NDArray[np.float32] = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-9)
    return out


def _words(graph: KnowledgeGraph) -> sparse.csr_array:
    """TF-IDF of all that the catalogue says about an item: words and word pairs, sublinear, unit rows. Shape (I, D)."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    from encoders.content import MARKS, UNSPACED, ItemFacts

    texts = ItemFacts.of(graph).documents()
    # Scripts without spaces give no words, so there each character is one, and their pairs about the words.
    token = rf"[{UNSPACED}][{MARKS}]*|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{MARKS}])+"
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, token_pattern=token)
    try:
        return sparse.csr_array(vectorizer.fit_transform(texts))
    except ValueError:  # no item has a single word
        return sparse.csr_array(np.zeros((len(texts), 1), dtype=np.float32))


def _columns(matrix: sparse.csr_array, kept: NDArray[np.bool_]) -> sparse.csr_array:
    """The matrix with the other columns emptied, its shape kept."""
    from scipy import sparse

    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    inside = kept[matrix.indices] & (matrix.data != 0)
    entries = (matrix.data[inside], (rows[inside], matrix.indices[inside]))
    return sparse.csr_array(entries, shape=(matrix.shape[0], matrix.shape[1]))


def _rows(item_nums: NDArray[np.int64], n_items: int) -> sparse.csr_array:
    """Lists of item nums (-1 is none) as rows of a binary matrix. Shape (B, I)."""
    from scipy import sparse

    filled = [row[row >= 0] for row in item_nums]
    heads = np.repeat(np.arange(len(filled)), [len(row) for row in filled])
    tails = np.concatenate([*filled, np.empty(0, dtype=np.int64)])
    return sparse.csr_array((np.ones(len(tails), dtype=np.float32), (heads, tails)), shape=(len(filled), n_items))


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _table(evaluation: Evaluation) -> Iterator[str]:
    k = evaluation.k
    methods = list(dict.fromkeys(cell.method for cell in evaluation.cells))
    seeds = sorted({cell.seed for cell in evaluation.cells})
    hidden = "a fifth of the items"
    if evaluation.cut is not None:
        hidden = f"everything from {datetime.fromtimestamp(evaluation.cut, UTC).isoformat(sep=' ')} on"
    yield f"Hidden: {hidden}; seeds {seeds}; trained on the rest ({evaluation.seconds:.0f} s in all)"

    def rows(pool: Pool, columns: Mapping[str, tuple[str, str]]) -> Iterator[str]:
        yield "  " + " " * 12 + "".join(f"{title:>15}" for title in columns)
        for method in methods:
            values = [evaluation.mean(method, pool, name, bucket) for name, bucket in columns.values()]
            yield f"  {method:<12}" + "".join(f"{'–' if np.isnan(value) else f'{value:.4f}':>15}" for value in values)

    if any(cell.pool == "new" for cell in evaluation.cells):
        n_items, n_taken = (evaluation.mean(PRODUCT, "new", name) for name in ("n_items", "n_hidden_items"))
        yield f"\nNew items only: {n_items:,.0f}, of which test customers took {n_taken:,.0f}; others are misses"
        names = (f"ndcg@{k}", f"recall@{k}", f"hit@{k}", f"mrr@{k}", "coverage", "gini", "diversity")
        yield from rows("new", {name: (name, "") for name in names})
    if any(cell.pool == "all" for cell in evaluation.cells):
        yield f"\nAll items: NDCG@{k} of hidden items by their training events, and what the lists look like"
        buckets = {f"{name} events": (f"ndcg@{k}", name) for name in BUCKETS if name != "warm"}
        rest = ("cold_share", "coverage", "novelty", "miscalibration")
        yield from rows("all", {**buckets, "warm": (f"ndcg@{k}", "warm"), **{name: (name, "") for name in rest}})
    yield "\ncoverage: share of the items that some list shows; gini: 0 where all are shown alike, towards 1 where few"
    yield "are; diversity: 0 to 1, how unlike a list's items are; cold_share: slots of new items; novelty: bits, more"
    yield "where few took an item; miscalibration: 0 where a list's mix of categories is the history's, else more"
    if evaluation.comparisons:
        yield f"\n{PRODUCT} against … (NDCG@{k}, 95 % intervals, paired; shown where p < .05 by Holm)"
    for found in evaluation.comparisons:
        at = found.interval
        verdict = "better" if at.difference > 0 else "worse"
        if found.p_holm >= metrics.SIGNIFICANCE:  # an interval alone forgets how many methods are compared
            verdict = "no difference shown"
        yield (
            f"  {found.method:<12}{found.pool:>4}, over {at.n:,} {found.over:<10}"
            f" {at.difference:+.4f} [{at.difference_low:+.4f}, {at.difference_high:+.4f}]"
            f"  × {at.ratio:.3f} [{at.ratio_low:.3f}, {at.ratio_high:.3f}]  {verdict}"
        )
