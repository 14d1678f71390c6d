"""The metric core against hand-computed lists, and against ranx and ir-measures on random ones."""

from __future__ import annotations

import json
import math
import time
from itertools import combinations

import numpy as np
import pytest
from scipy import sparse

from recommender import metrics


def rows(*positives: list[int], n_items: int = 10) -> sparse.csr_array:
    dense = np.zeros((len(positives), n_items), dtype=np.float32)
    for row, items in enumerate(positives):
        dense[row, items] = 1
    return sparse.csr_array(dense)


def random_case(n_users=60, n_items=200, k=50, seed=0):
    rng = np.random.default_rng(seed)
    recommended = np.stack([rng.permutation(n_items)[:k] for _ in range(n_users)]).astype(np.int64)
    recommended[0, 7:] = -1
    positives = [rng.choice(n_items, size=rng.integers(1, 40), replace=False).tolist() for _ in range(n_users)]
    return recommended, rows(*positives, n_items=n_items), positives


def test_known_list():
    """Positives 3 and 5; the list finds 3 at rank 2 and 5 at rank 4."""
    got = metrics.ranking_metrics(np.array([[1, 3, 2, 5]]), rows([3, 5]), ks=(1, 2, 4))
    best = 1 + 1 / math.log2(3)
    assert [got[f"recall@{k}"][0] for k in (1, 2, 4)] == [0, 0.5, 1]
    assert got["ndcg@2"][0] == pytest.approx((1 / math.log2(3)) / best)
    assert got["ndcg@4"][0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert [got[f"hit@{k}"][0] for k in (1, 2, 4)] == [0, 1, 1]
    assert [got[f"mrr@{k}"][0] for k in (1, 2, 4)] == [0, 0.5, 0.5]
    assert all(values.shape == (1,) for values in got.values())


def test_more_positives_than_slots_can_still_be_perfect():
    got = metrics.ranking_metrics(np.array([[0, 1]]), rows([0, 1, 2, 3]), ks=(2,))
    assert got["ndcg@2"][0] == pytest.approx(1)
    assert got["recall@2"][0] == 0.5


def test_padding_never_counts_as_a_hit():
    """Row 1 has item 9 = the last of the vocabulary, at which a naive -1 would point."""
    got = metrics.ranking_metrics(np.array([[4, -1], [-1, -1]]), rows([4], [9]), ks=(2,))
    assert got["hit@2"].tolist() == [1, 0]


def test_same_as_ranx():
    import ranx  # compiles for seconds: here alone

    recommended, relevant, positives = random_case()
    qrels = ranx.Qrels({f"u{u}": {f"i{i}": 1 for i in items} for u, items in enumerate(positives)})
    lists = {
        f"u{u}": {f"i{i}": float(len(row) - rank) for rank, i in enumerate(row) if i >= 0}
        for u, row in enumerate(recommended)
    }
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in metrics.KS]  # each name compiles for seconds
    theirs = ranx.evaluate(qrels, ranx.Run(lists), names, return_mean=False)
    ours = metrics.ranking_metrics(recommended, relevant)
    order = np.argsort(np.argsort([f"u{u}" for u in range(len(positives))]))  # ranx sorts its queries by name
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name][order], atol=1e-9, err_msg=name)


def test_same_as_ir_measures():
    import ir_measures

    recommended, relevant, positives = random_case(seed=1)
    qrels = [ir_measures.Qrel(f"u{u}", f"i{i}", 1) for u, items in enumerate(positives) for i in items]
    run = [
        ir_measures.ScoredDoc(f"u{u}", f"i{i}", float(len(row) - rank))
        for u, row in enumerate(recommended)
        for rank, i in enumerate(row)
        if i >= 0
    ]
    pairs = {}
    for k in metrics.KS:
        pairs |= {
            f"recall@{k}": ir_measures.R @ k,
            f"ndcg@{k}": ir_measures.nDCG @ k,
            f"hit@{k}": ir_measures.Success @ k,
            f"mrr@{k}": ir_measures.RR @ k,
        }
    ours = metrics.ranking_metrics(recommended, relevant)
    theirs = {
        (str(found.measure), found.query_id): found.value for found in ir_measures.iter_calc(pairs.values(), qrels, run)
    }
    for name, measure in pairs.items():
        expected = [theirs[str(measure), f"u{u}"] for u in range(len(positives))]
        np.testing.assert_allclose(ours[name], expected, atol=1e-9, err_msg=name)


def test_item_parts_sum_to_the_mean_over_users():
    recommended, relevant, _ = random_case(seed=2)
    gains, counts = metrics.ndcg_by_item(recommended, relevant, k=20)
    assert gains.shape == counts.shape == (200,)
    assert counts.sum() == pytest.approx(len(recommended))
    assert gains.sum() / counts.sum() == pytest.approx(metrics.ranking_metrics(recommended, relevant)["ndcg@20"].mean())


@pytest.mark.parametrize(
    ("recommended", "relevant", "message"),
    [
        (np.array([[1, 1]]), rows([1]), "twice"),
        (np.array([[10, 1]]), rows([1]), "expected -1"),
        (np.array([[-2, 1]]), rows([1]), "expected -1"),
        (np.array([[0, 1], [0, 1]]), rows([1]), "one row a user"),
        (np.array([[0, 1]]), rows([]), "no positive"),
        (np.array([[0]]), rows([1]), "slots"),
    ],
)
def test_wrong_input_is_refused(recommended, relevant, message):
    with pytest.raises(ValueError, match=message):
        metrics.ranking_metrics(recommended, relevant, ks=(2,))


def test_explicit_zeros_and_doubled_entries_do_not_count():
    doubled = sparse.csr_array((np.array([1, 1, 0.0]), np.array([3, 3, 4]), np.array([0, 3])), shape=(1, 10))
    got = metrics.ranking_metrics(np.array([[3, 4]]), doubled, ks=(2,))
    assert got["recall@2"][0] == 1
    assert got["ndcg@2"][0] == pytest.approx(1)


def test_top_k_sorts_like_a_full_sort():
    scores = np.random.default_rng(0).normal(size=(7, 100))
    got = metrics.top_k(scores, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(got, np.argsort(-scores, axis=1)[:, :10])


def test_top_k_breaks_ties_evenly_and_by_seed():
    scores = np.zeros((4000, 4), dtype=np.float32)
    scores[:, 3] = 1e-9  # noise of a matrix product is a tie too, where the row has a real score
    scores = np.hstack([scores, np.ones((4000, 1), dtype=np.float32)])
    got = metrics.top_k(scores, 2, np.random.default_rng(0))
    assert (got[:, 0] == 4).all()
    assert np.bincount(got[:, 1], minlength=4).min() > 850
    np.testing.assert_array_equal(got, metrics.top_k(scores, 2, np.random.default_rng(0)))


def test_top_k_shows_only_what_is_allowed_and_pads():
    scores = np.array([[3.0, 2.0, 1.0]])
    allowed = np.array([[False, True, True]])
    assert metrics.top_k(scores, 5, np.random.default_rng(0), allowed=allowed).tolist() == [[1, 2, -1, -1, -1]]


def test_what_the_lists_look_like():
    recommended = np.array([[0, 1], [0, 2], [0, -1]])
    pool = np.array([True, True, True, True, False])
    assert metrics.coverage(recommended, pool) == 0.75
    assert metrics.cold_share(recommended, np.array([True, False, False, False, False])) == pytest.approx(3 / 5)
    # exposures 0, 1, 1, 3: mean absolute difference over twice the mean
    counts = [0, 1, 1, 3]
    spread = sum(abs(a - b) for a in counts for b in counts) / (2 * 16 * np.mean(counts))
    assert metrics.gini(recommended, pool) == pytest.approx(spread)
    assert metrics.gini(np.array([[0, 1, 2, 3]]), pool) == 0
    n_events = np.array([0, 1, 3, 0, 0])
    assert metrics.novelty(np.array([[0, 2]]), n_events, n_users=7) == pytest.approx((3 + 1) / 2)


def test_diversity_is_the_mean_pairwise_distance():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 5))
    vectors[3] = 0
    recommended = np.array([[0, 1, 2, 3], [4, 5, -1, -1], [6, -1, -1, -1]])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    got = metrics.diversity(recommended, sparse.csr_array(vectors))
    for row in (0, 1):
        shown = recommended[row][recommended[row] >= 0]
        expected = np.mean([1 - unit[a] @ unit[b] for a, b in combinations(shown, 2)])
        assert got[row] == pytest.approx(expected)
    assert got.shape == (3,)
    assert np.isnan(got[2])


def test_miscalibration_is_zero_for_the_same_mix_and_grows_with_the_difference():
    categories = sparse.csr_array(np.array([[1, 0], [0, 1], [1, 0], [0, 1], [0, 0]]))
    histories = rows([0, 1], [0, 1], [0], [4], n_items=5)
    same, one_sided, opposite, unknown = metrics.miscalibration(
        np.array([[2, 3], [2, -1], [3, -1], [2, 3]]), histories, categories
    )
    assert same == pytest.approx(0, abs=1e-12)
    assert one_sided == pytest.approx(0.5 * math.log(0.5 / 0.995) + 0.5 * math.log(0.5 / 0.005))
    assert opposite == pytest.approx(math.log(1 / 0.01))
    assert np.isnan(unknown)


def test_bootstrap_covers_a_known_difference():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(size=400)
    ours = theirs + rng.normal(0.05, 0.1, size=400)
    got = metrics.paired_bootstrap(ours, theirs)
    # the normal approximation of a paired difference
    half = 1.96 * (ours - theirs).std(ddof=1) / 20
    assert got.difference == pytest.approx((ours - theirs).mean())
    assert got.difference_low == pytest.approx(got.difference - half, abs=half / 8)
    assert got.difference_high == pytest.approx(got.difference + half, abs=half / 8)
    assert got.ratio_low < got.ratio < got.ratio_high
    assert got.ratio == pytest.approx(ours.mean() / theirs.mean())
    assert got.difference_low > 0
    assert got.p_value < 0.01


def test_bootstrap_of_the_same_thing_is_no_win():
    values = np.random.default_rng(0).uniform(size=50)
    got = metrics.paired_bootstrap(values, values)
    assert (got.difference_low, got.difference_high, got.ratio, got.p_value) == (0, 0, 1, 1)
    assert not got.difference_low > 0


def test_a_ratio_to_nothing_is_not_defined():
    got = metrics.paired_bootstrap(np.array([0.5, 0.0, 0.25]), np.zeros(3))
    assert np.isnan([got.ratio, got.ratio_low, got.ratio_high]).all()
    written = json.loads(json.dumps(got.to_json(), allow_nan=False))
    assert {name for name, value in written.items() if value is None} == {"ratio", "ratio_low", "ratio_high"}
    assert written["difference"] == pytest.approx(0.25)


def test_bootstrap_false_alarms_are_about_as_rare_as_the_level_says():
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(200):
        ours, theirs = rng.normal(size=(2, 80))
        got = metrics.paired_bootstrap(ours, theirs, n_resamples=400, seed=seed)
        alarms += got.difference_low > 0 or got.difference_high < 0
    assert 2 <= alarms <= 24  # 5 % of 200 is 10


def test_bootstrap_is_deterministic_by_seed():
    ours, theirs = np.random.default_rng(0).uniform(size=(2, 90))
    again = metrics.paired_bootstrap(ours, theirs, seed=3)
    assert metrics.paired_bootstrap(ours, theirs, seed=3) == again
    assert metrics.paired_bootstrap(ours, theirs, seed=4) != again


def test_bootstrap_with_counts_is_a_ratio_of_sums():
    ours, theirs = np.array([2.0, 0.0, 3.0]), np.array([1.0, 1.0, 1.0])
    got = metrics.paired_bootstrap(ours, theirs, counts=np.array([1.0, 1.0, 3.0]))
    assert (got.ours, got.theirs) == (1, 0.6)


def test_bootstrap_against_nothing_has_no_ratio():
    got = metrics.paired_bootstrap(np.ones(20), np.zeros(20))
    assert got.difference == 1
    assert math.isnan(got.ratio_low)


def test_bootstrap_refuses_unpaired_arrays():
    with pytest.raises(ValueError, match="same"):
        metrics.paired_bootstrap(np.ones(3), np.ones(4))


def test_holm_by_hand():
    assert metrics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )


def test_all_users_of_a_middle_sized_shop_in_seconds():
    rng = np.random.default_rng(0)
    n_users, n_items = 22_000, 12_000
    recommended = (rng.integers(0, n_items, size=(n_users, 1)) + np.arange(50)) % n_items
    relevant = sparse.csr_array(
        (np.ones(2 * n_users), (np.repeat(np.arange(n_users), 2), rng.integers(0, n_items, 2 * n_users))),
        shape=(n_users, n_items),
    )
    started = time.perf_counter()
    values = metrics.ranking_metrics(recommended, relevant)["ndcg@20"]
    metrics.paired_bootstrap(values, values[::-1])
    assert time.perf_counter() - started < 20
