"""Evaluation with rankers whose quality is known: one that sees the hidden pairs, one that sees nothing.

The shop: users and items have one of two tastes; a user takes items of their taste only, and every item's name says it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from checkerboard import lists_of
from scipy import sparse

from kg import Workspace, open_store, schema, snapshot
from kg.errors import SourceError, WorkspaceError
from recommender import evaluation, metrics, splits

N_ITEMS, N_USERS = 60, 80


def write_shop(store):
    rng = np.random.default_rng(0)
    names = [f"{'garden' if n % 2 else 'kitchen'} thing{n % 7}" for n in range(N_ITEMS)]
    items = pl.DataFrame({"key": [f"p{n:02d}" for n in range(N_ITEMS)], "name": names})
    store.write_nodes(schema.CATEGORY, pl.DataFrame({"key": ["garden", "kitchen"], "name": ["Garden", "Kitchen"]}))
    store.write_nodes(schema.PRODUCT, items)
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": [f"u{n:02d}" for n in range(N_USERS)]}))
    places = items.select(head="key", tail=pl.col("name").str.split(" ").list.first(), source=pl.lit("catalogue"))
    store.write_edges(schema.IN_CATEGORY, places)
    rows = []
    for user in range(N_USERS):
        mine = np.arange(user % 2, N_ITEMS, 2)
        weights = 1 / (1 + mine)  # low numbers are popular
        chosen = rng.choice(mine, size=12, replace=False, p=weights / weights.sum())
        rows += [(f"u{user:02d}", f"p{n:02d}", 1000 + 10 * int(n) + at, at) for at, n in enumerate(sorted(chosen))]
    bought = pl.DataFrame(rows, schema=["head", "tail", "at", "position"], orient="row")
    bought = bought.with_columns(last_at="at", weight=pl.lit(1.0), source=pl.lit("behaviour"))
    store.write_edges(schema.INTERACTED, bought)
    store.set_mark("tastes")


@pytest.fixture(scope="module")
def graph():
    store = open_store("memory:")
    write_shop(store)
    return snapshot(store, until=None)


class Told:
    """Ranks what it is told to be right first, then the rest of the pool; never the user's own."""

    def __init__(self, graph, right):
        self.n_events = graph.n_events
        self.histories = [tuple(sorted(row)) for row in np.split(*_rows(graph.interactions))]
        self.right = right

    def rank(self, histories, *, k, pool):
        lists = np.full((histories.shape[0], k), -1)
        for row, history in enumerate(lists_of(histories)):
            user = self.histories.index(tuple(sorted(history)))
            scores = self.right[user] + 1e-3 * (self.n_events == 0)
            scores[history] = -np.inf
            if pool == "new":
                scores[self.n_events > 0] = -np.inf
            best = np.argsort(-scores, kind="stable")[:k]
            best = best[np.isfinite(scores[best])]
            lists[row, : len(best)] = best
        return SimpleNamespace(item_nums=lists)


def _rows(matrix):
    return matrix.indices, matrix.indptr[1:-1]


def run(graph, right_of, seeds=(0, 1), k=5):
    made = [(seed, splits.split_graph(graph, seed=seed, warm_share=0.1)) for seed in seeds]
    hidden = dict(made)

    def fit(graph, seed, progress):
        return Told(graph, right_of(hidden[seed], seed))

    cells, comparisons = evaluation.evaluate_splits(made, fit, n_splits=len(made), k=k)
    return evaluation.Evaluation("items", None, k, cells, comparisons, 1.0)


@pytest.fixture(scope="module")
def oracle(graph):
    return run(graph, lambda split, seed: split.hidden.toarray())


def test_who_knows_the_truth_is_perfect_and_beats_everyone(oracle):
    for pool in ("new", "all"):
        for measure in ("ndcg@5", "hit@10", "mrr@50"):
            assert oracle.mean("firstshelf", pool, measure) == pytest.approx(1)
    against = {(found.method, found.pool, found.over): found for found in oracle.comparisons}
    assert len(against) == 3 * len(evaluation.BASELINES)
    assert all(found.interval.difference_low > 0 for found in against.values())
    assert all(found.interval.p_value <= found.p_holm <= 0.01 for found in against.values())


def test_a_win_over_one_of_many_is_not_called_one(oracle):
    corrected = [replace(found, p_holm=0.06) for found in oracle.comparisons]
    verdicts = [line for line in str(replace(oracle, comparisons=tuple(corrected))).splitlines() if " over " in line]
    assert len(verdicts) == len(corrected)
    assert all(line.endswith("no difference shown") for line in verdicts)
    assert all(line.endswith("better") for line in str(oracle).splitlines() if " over " in line)


def test_novelty_counts_all_customers(graph):
    """Two of seven customers took item 3: log2(8 / 3) bits, however many of them are test users."""
    n_events = np.full(N_ITEMS, 2)
    rows = sparse.csr_array(([1.0], ([0], [0])), shape=(1, N_ITEMS))
    relevant = sparse.csr_array(([1.0], ([0], [3])), shape=(1, N_ITEMS))
    given = {"histories": rows, "n_events": n_events, "n_customers": 7, "pool": np.ones(N_ITEMS, dtype=bool)}
    found = evaluation.measure(np.array([[3]]), relevant, **given, ks=(1,), k=1)
    assert found["novelty"] == pytest.approx(np.log2(8 / 3))


def test_who_knows_nothing_does_not_beat_chance(graph):
    found = run(graph, lambda split, seed: np.random.default_rng(99 + seed).uniform(size=split.hidden.shape))
    chance = [c for c in found.comparisons if c.method == "random" and c.pool == "new"]
    assert [c.over for c in chance] == ["users", "new items"]
    assert all(c.interval.difference_low < 0 < c.interval.difference_high for c in chance)


def test_text_finds_the_taste_and_popularity_does_not(oracle):
    assert oracle.mean("tfidf", "new", "recall@5") > 1.5 * oracle.mean("random", "new", "recall@5")
    assert oracle.mean("popularity", "new", "recall@5") < 1.3 * oracle.mean("random", "new", "recall@5")
    assert oracle.mean("popularity", "all", "ndcg@5", "warm") > oracle.mean("random", "all", "ndcg@5", "warm")
    assert oracle.mean("popularity", "all", "ndcg@5", "0") == 0
    assert oracle.mean("popularity", "all", "cold_share") == 0
    assert oracle.mean("tfidf", "new", "cold_share") == 1
    assert oracle.mean("tfidf", "new", "miscalibration") < oracle.mean("random", "new", "miscalibration")


def test_ease_with_text_ranks_both_kinds_of_items(oracle):
    for method in ("tfidf", "popularity", "random"):
        assert oracle.mean("text+ease", "all", "ndcg@5", "warm") >= oracle.mean(method, "all", "ndcg@5", "warm")
    assert oracle.mean("text+ease", "new", "recall@5") > 1.5 * oracle.mean("random", "new", "recall@5")


def test_ease_is_carried_over_to_what_reads_alike():
    """Items 0 and 1 are bought together, so are 2 and 3; the new ones read as 1 and as 3, and nothing else is alike."""
    words = sparse.csr_array(np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 3]])
    together = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=np.float32)
    taken = sparse.csr_array(np.repeat(together, 30, axis=0))
    split = SimpleNamespace(cold=np.arange(6) >= 4, graph=SimpleNamespace(interactions=taken))
    asked = sparse.csr_array(np.array([[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]], dtype=np.float32))
    assert not evaluation._by_words(asked, words)[:, 4:].any()
    scores = evaluation._text_and_ease(split, words)(asked)
    assert scores[:, 4:] == pytest.approx(np.array([[0.6, -0.6], [-0.6, 0.6]]), abs=1e-5)
    assert scores[0, 1] > scores[0, 3]
    assert scores[1, 3] > scores[1, 1]


def test_the_nearest_and_the_z_norm_by_hand():
    words = sparse.csr_array(np.array([[1, 0], [0, 1], [0.8, 0.6], [0, 0]], dtype=np.float32))
    nearest = evaluation._nearest(words, np.array([2, 3]), np.array([0, 1]), 20).toarray()
    assert nearest == pytest.approx(np.array([[0.8 / 1.4, 0.6 / 1.4], [0, 0]]))
    assert evaluation._nearest(words, np.array([2]), np.array([0, 1]), 1).toarray() == pytest.approx(np.array([[1, 0]]))
    assert evaluation._nearest(words, np.array([], dtype=int), np.array([0, 1]), 1).shape == (0, 2)
    assert evaluation._z(np.array([[1.0, 3.0], [2.0, 2.0]], dtype=np.float32)).tolist() == [[-1, 1], [0, 0]]


def test_buckets_share_out_the_positives(oracle, graph):
    for cell in oracle.cells:
        buckets = cell.measures["buckets"]
        parts = sum(buckets[name]["n_positives"] for name in ("0", "1-5", "6-20", ">20"))
        assert buckets["warm"]["n_positives"] == parts - buckets["0"]["n_positives"]
        split = splits.split_graph(graph, seed=cell.seed, warm_share=0.1)
        assert parts == (split.hidden.nnz if cell.pool == "all" else split.hidden[:, split.cold].nnz)
        assert cell.n_users == cell.measures["n_users"] > 0


def test_the_answer_can_be_written_and_read(oracle):
    again = json.loads(json.dumps(oracle.to_json()))
    assert again["cells"][0]["method"] == "firstshelf"
    table = oracle.to_pandas()
    row = table.query("method == 'tfidf' and pool == 'all' and seed == 1 and bucket == '0' and measure == 'ndcg@5'")
    cell = next(c for c in oracle.cells if (c.method, c.pool, c.seed) == ("tfidf", "all", 1))
    assert row["value"].item() == cell.measures["buckets"]["0"]["ndcg@5"]
    text = str(oracle)
    sizes = [oracle.mean("firstshelf", "new", name) for name in ("n_items", "n_hidden_items")]
    assert "New items only: {:.0f}, of which test customers took {:.0f};".format(*sizes) in text
    assert 0 < sizes[1] <= sizes[0]
    assert f"{oracle.mean('tfidf', 'new', 'ndcg@5'):.4f}" in text
    assert text.count("better") == 3 * len(evaluation.BASELINES)


def test_several_seeds_pair_the_same_users_and_items(oracle):
    new = next(c for c in oracle.comparisons if (c.method, c.pool, c.over) == ("tfidf", "new", "users"))
    cells = [c for c in oracle.cells if (c.method, c.pool) == ("tfidf", "new")]
    by_hand = sum(c.measures["ndcg@5"] * c.n_users for c in cells) / sum(c.n_users for c in cells)
    assert new.interval.theirs == pytest.approx(by_hand)
    assert new.interval.n <= N_USERS
    over_items = next(c for c in oracle.comparisons if (c.method, c.pool, c.over) == ("tfidf", "new", "new items"))
    assert over_items.interval.theirs == pytest.approx(by_hand)


def test_a_recommender_that_cheats_is_caught(graph):
    split = splits.split_graph(graph, seed=0)
    relevant = split.hidden[:1]
    given = {"histories": split.graph.interactions[:1], "n_events": split.graph.n_events, "n_customers": 1}
    given |= {"ks": (2,), "k": 2}
    own = np.array([split.graph.interactions[:1].indices[:2]])
    with pytest.raises(AssertionError, match="own item"):
        evaluation.measure(own, relevant, pool=np.ones(N_ITEMS, dtype=bool), **given)
    warm = np.setdiff1d(np.flatnonzero(~split.cold), split.graph.interactions[:1].indices)[None, :2]
    with pytest.raises(AssertionError, match="outside the pool"):
        evaluation.measure(warm, relevant, pool=split.cold, **given)


def test_short_lists_are_filled_with_nothing(graph):
    split = splits.split_graph(graph, seed=0)
    ranker = SimpleNamespace(rank=lambda histories, *, k, pool: SimpleNamespace(item_nums=np.array([[3], [4]])))
    lists = evaluation.rank_all(ranker, split.graph.histories[:2], 4, "new")
    assert lists.tolist() == [[3, -1, -1, -1], [4, -1, -1, -1]]
    assert split.cold.sum() == N_ITEMS // 5


def test_columns_and_rows_keep_their_shapes():
    matrix = sparse.csr_array(np.array([[1, 0, 2], [0, 3, 0]]))
    kept = evaluation._columns(matrix, np.array([True, False, True]))
    assert kept.toarray().tolist() == [[1, 0, 2], [0, 0, 0]]
    assert evaluation._rows([np.array([2, -1]), np.array([], dtype=int)], 3).toarray().tolist() == [
        [0, 0, 1],
        [0, 0, 0],
    ]


@pytest.fixture
def workspace(tmp_path):
    place = Workspace.create(tmp_path / "shop.workspace")
    store = place.open_store()
    write_shop(store)
    store.close()
    return place


def popular(graph, seed, progress):
    split = splits.GraphSplit(graph, sparse.csr_array((len(graph.users), len(graph.items))))
    return evaluation._Baseline(evaluation._scorer("popularity", split, evaluation._words(graph), seed), split, seed)


@pytest.mark.parametrize(("protocol", "cut"), [("items", None), ("time", None), ("time", 1400)])
def test_a_workspace_is_evaluated_and_left_as_it_was(workspace, protocol, cut):
    before = {file: file.read_bytes() for file in workspace.path.rglob("*") if file.is_file()}
    seen = []
    found = evaluation.evaluate(
        workspace, protocol=protocol, cut=cut, fit=popular, k=5, progress=lambda *step: seen.append(step)
    )
    assert {cell.pool for cell in found.cells} == {"new", "all"}
    assert found.mean("firstshelf", "all", "ndcg@5") == pytest.approx(
        found.mean("popularity", "all", "ndcg@5"), abs=0.02
    )
    assert seen[0] == ("evaluate", 0, 1)
    assert seen[-1] == ("evaluate", 1, 1)
    if protocol == "time":
        assert found.cut == (cut or splits.default_cut(_graph(workspace)))
        assert cut is None or "everything from 1970-01-01 00:23:20+00:00 on" in str(found)
    heads = [line.split() for line in str(found).splitlines() if "novelty" in line]
    assert heads[0][-2:] == ["novelty", "miscalibration"]
    after = {file: file.read_bytes() for file in workspace.path.rglob("*") if file.is_file()}
    assert set(after) == set(before)
    assert [file.name for file in after if after[file] != before[file] and "lock" not in file.name] == []


def _graph(workspace):
    store = workspace.open_store()
    try:
        return snapshot(store, until=None)
    finally:
        store.close()


def test_what_can_not_be_evaluated_says_why(workspace, tmp_path):
    with pytest.raises(ValueError, match="at least one seed"):
        evaluation.evaluate(workspace, seeds=())
    with pytest.raises(ValueError, match="protocol 'time'"):
        evaluation.evaluate(workspace, cut="2024-01-01")
    with pytest.raises(SourceError, match="hidden pairs"):
        evaluation.evaluate(workspace, protocol="time", cut="2030-01-01", fit=popular)
    with pytest.raises(SourceError, match="no time"):
        evaluation.evaluate(workspace, protocol="time", cut="soon", fit=popular)
    with pytest.raises(WorkspaceError, match="no finished load"):
        evaluation.evaluate(Workspace.create(tmp_path / "empty"), fit=popular)


def test_the_same_seed_gives_the_same_numbers(graph):
    first, second = (run(graph, lambda split, seed: split.hidden.toarray(), seeds=(3,)) for _ in range(2))
    strip = [(c.method, c.pool, c.measures) for c in first.cells]
    assert strip == [(c.method, c.pool, c.measures) for c in second.cells]
    assert first.comparisons == second.comparisons
    assert metrics.KS == (10, 20, 50)
