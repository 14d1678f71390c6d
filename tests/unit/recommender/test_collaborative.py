from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from kg.errors import TrainingError
from recommender.collaborative import co_walk, ease, fit_item_model, inverse_of, item_knn


@pytest.fixture
def interactions() -> sparse.csr_array:
    rng = np.random.default_rng(0)
    return sparse.csr_array((rng.random((60, 12)) < 0.3).astype(np.float32))


def test_ease_is_the_constrained_ridge_regression(interactions: sparse.csr_array) -> None:
    """Oracle: column j is the ridge regression of column j on the other columns."""
    weights = ease(interactions, l2=5.0)
    assert weights.shape == (12, 12)
    x = interactions.toarray().astype(float)
    for j in range(12):
        others = np.delete(np.arange(12), j)
        a = x[:, others]
        expected = np.linalg.solve(a.T @ a + 5.0 * np.eye(11), a.T @ x[:, j])
        np.testing.assert_allclose(weights[others, j], expected, atol=1e-4)
        assert weights[j, j] == 0


def test_items_without_events_have_empty_columns(interactions: sparse.csr_array) -> None:
    dense = interactions.toarray()
    dense[:, 3] = 0
    assert not ease(sparse.csr_array(dense), l2=5.0)[:, 3].any()


def test_a_matrix_without_an_inverse_is_an_error_not_a_model() -> None:
    matrix = np.diag([2.0, 4.0]).astype(np.float32)
    np.testing.assert_allclose(inverse_of(matrix), np.diag([0.5, 0.25]))
    with pytest.raises(TrainingError, match="2 items is singular in single precision"):
        inverse_of(np.ones((2, 2), dtype=np.float32))


def test_item_knn_is_the_shrunk_cosine(interactions: sparse.csr_array) -> None:
    weights = item_knn(interactions, k=12, shrink=2.0).toarray()
    x = interactions.toarray()
    together = x.T @ x
    counts = np.diag(together)
    expected = together / (np.sqrt(np.outer(counts, counts)) + 2.0)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_large_catalogues_get_the_sparse_model(interactions: sparse.csr_array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recommender.collaborative.MAX_DENSE_ITEMS", 11)
    assert sparse.issparse(fit_item_model(interactions, l2=5.0))


def test_a_walk_step_is_a_probability_and_never_stays(interactions: sparse.csr_array) -> None:
    walk = co_walk(interactions).toarray()
    totals = walk.sum(axis=1)
    assert np.all(np.isclose(totals, 1, atol=1e-5) | (totals == 0))
    assert not np.diag(walk).any()
