from __future__ import annotations

from copy import copy
from pathlib import Path

import numpy as np
import pytest
from checkerboard import checkerboard, tiny_text_model
from scipy import sparse

from encoders.content import ItemContent, ItemFacts
from encoders.graph import GraphEncoder, Pairs
from encoders.text import TextEncoder
from kg import KnowledgeGraph
from recommender.scorers import (
    _LOG_LIKELIHOOD,
    FACT_VIEWS,
    Neighbours,
    Scorers,
    _asinh,
    _chunks,
    _crowd,
    _largest,
    _ridge,
    content_kernel,
    load_neighbours,
    save_neighbours,
)


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return checkerboard()


@pytest.fixture(scope="module")
def content(graph: KnowledgeGraph, tmp_path_factory: pytest.TempPathFactory) -> ItemContent:
    encoder = TextEncoder.pretrained(str(tiny_text_model(tmp_path_factory.mktemp("text"))))
    return ItemContent.fit(ItemFacts.of(graph), encoder, seed=0)


def test_neighbours_are_warm_others_and_rows_are_candidates(graph: KnowledgeGraph, content: ItemContent) -> None:
    warm = graph.n_events > 0
    neighbours = Neighbours.fit(content, warm)
    for matrix in neighbours.matrices.values():
        assert matrix.shape == (80, 80)
        assert warm[matrix.indices].all()
        assert not matrix.diagonal().any()


def test_neighbours_of_a_brand_share_it(graph: KnowledgeGraph, content: ItemContent) -> None:
    brands = Neighbours.fit(content, graph.n_events > 0).matrices["brands"].tocoo()
    assert brands.nnz
    assert (brands.row % 4 == brands.col % 4).all()


def test_putting_the_same_items_again_changes_nothing(graph: KnowledgeGraph, content: ItemContent) -> None:
    neighbours = Neighbours.fit(content, graph.n_events > 0)
    before = {view: matrix.toarray() for view, matrix in neighbours.matrices.items()}
    neighbours.put(content, np.array([3, 70]))
    for view, matrix in neighbours.matrices.items():
        np.testing.assert_allclose(matrix.toarray(), before[view], atol=1e-6)


def test_neighbours_of_added_items_can_be_kept_and_put_again(graph: KnowledgeGraph, content: ItemContent) -> None:
    warm = graph.n_events > 0
    grown = copy(content)
    grown.put(ItemFacts.of(graph, np.array([6, 9])), np.array([3, 80]))
    neighbours, again = (Neighbours.fit(content, warm) for _ in range(2))
    neighbours.put(grown, np.array([3, 80]))
    again.put_kept(neighbours.rows(np.array([3, 80])), np.array([3, 80]))
    np.testing.assert_array_equal(again.warm, [*warm, False])
    for view, matrix in neighbours.matrices.items():
        assert matrix.shape == (81, 81)
        np.testing.assert_array_equal(again.matrices[view].toarray(), matrix.toarray())


def test_neighbours_are_saved_and_loaded(graph: KnowledgeGraph, content: ItemContent, tmp_path: Path) -> None:
    neighbours = Neighbours.fit(content, graph.n_events > 0)
    save_neighbours(neighbours, tmp_path / "neighbours.safetensors")
    loaded = load_neighbours(tmp_path / "neighbours.safetensors")
    np.testing.assert_array_equal(loaded.warm, neighbours.warm)
    for view, matrix in neighbours.matrices.items():
        np.testing.assert_array_equal(loaded.matrices[view].toarray(), matrix.toarray())


def test_the_content_kernel_is_symmetric_and_positive(content: ItemContent) -> None:
    nums = np.arange(40)
    kernel = content_kernel(content, nums, nums)
    assert kernel.shape == (40, 40)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-5)
    assert np.linalg.eigvalsh(kernel.astype(float)).min() > -1e-3


def test_ridge_is_the_inverse_of_the_regularised_kernel(content: ItemContent) -> None:
    nums = np.arange(30)
    kernel = content_kernel(content, nums, nums).astype(float)
    identity = np.eye(30)
    inverse = _ridge(content, nums).astype(float)
    # inverse · (K + l2 · mean diagonal · 1) = 1; the penalty is what is left of the inverse's inverse.
    penalty = np.linalg.inv(inverse) - kernel
    np.testing.assert_allclose(penalty, penalty[0, 0] * identity, atol=2e-2)
    assert penalty[0, 0] > 0


def test_popularity_before_launch_is_that_of_the_neighbours(graph: KnowledgeGraph, content: ItemContent) -> None:
    """Items of one brand sell ten times as much, and so is a new one of it expected to; its own events are not read."""
    n_events = np.where(graph.n_events > 0, np.where(np.arange(80) % 4 == 1, 100, 10), 0)
    neighbours = Neighbours.fit(content, n_events > 0)
    crowd = _crowd(content, neighbours, np.arange(80), n_events)
    brands = crowd[:, [view for view, _ in FACT_VIEWS].index("brands")]
    assert brands[np.arange(80) % 4 == 1].min() > brands[np.arange(80) % 4 != 1].max()
    louder = n_events.copy()
    louder[5] = 10_000
    np.testing.assert_allclose(_crowd(content, neighbours, np.array([5]), louder), crowd[[5]], atol=0.2)
    np.testing.assert_array_equal(crowd[:, -8:], content.listing)


def test_the_largest_similarity_of_a_history_is_found() -> None:
    histories = sparse.csr_array(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=np.float32))
    view = sparse.csr_array(np.array([[0.5, 0.0], [0.9, 0.1], [0.2, 0.8]], dtype=np.float32))
    np.testing.assert_allclose(_largest(histories, view, 1.0), [[0.5, 0.8], [0.0, 0.0], [0.9, 0.1]], rtol=1e-6)


@pytest.fixture(scope="module")
def scorers(graph: KnowledgeGraph, content: ItemContent) -> Scorers:
    neighbours = Neighbours.fit(content, graph.n_events > 0)
    encoder = GraphEncoder.fit(
        content, graph.interactions, pairs=Pairs(neighbours.matrices), embedding_size=16, n_steps=5
    )
    taken = graph.interactions
    return Scorers.fit(content, neighbours, encoder, taken, together=taken, ease_l2=50.0, reference=np.arange(0, 80, 2))


def test_baskets_lead_from_item_to_item_like_customers(
    scorers: Scorers, graph: KnowledgeGraph, content: ItemContent
) -> None:
    """Items of two colours, which no customer takes together, in some baskets."""
    red, green = 0, 1
    baskets = np.zeros((5, 80), dtype=np.float32)
    baskets[:, [red, green]] = 1
    basketed = Scorers.fit(
        content,
        scorers._neighbours,
        scorers.encoder,
        graph.interactions,
        together=sparse.csr_array(sparse.vstack([graph.interactions, sparse.csr_array(baskets)])),
        ease_l2=50.0,
        reference=np.arange(0, 80, 2),
    )
    for step in ("ease", "walk"):
        before, after = (one.models[step][[red]][:, [green]].sum() for one in (scorers, basketed))
        assert after > before + 0.01, step
    np.testing.assert_array_equal(basketed.n_events, scorers.n_events)


def test_few_candidates_get_the_scores_that_they_get_among_many(
    scorers: Scorers, graph: KnowledgeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = scorers.histories(graph.histories)
    candidates = np.array([3, 41, 66, 79])
    from_their_side = list(scorers.block(candidates).raw(histories))
    monkeypatch.setattr("recommender.scorers._FEW_CANDIDATES", 0)
    from_the_users_side = list(scorers.block(candidates).raw(histories, scorers.steps(histories)))
    for name, few, many in zip(scorers.names, from_their_side, from_the_users_side, strict=True):
        assert few.shape == (120, 4)
        np.testing.assert_allclose(few, many, rtol=1e-4, atol=1e-6, err_msg=name)
    behaving = from_their_side[scorers.names.index("ease")]
    assert behaving[:, :2].any(), "warm candidates have behaviour of their own"
    assert not behaving[:, 2:].any(), "new candidates have none"


def test_all_scores_are_squashed_deviations_but_the_log_likelihood(scorers: Scorers, graph: KnowledgeGraph) -> None:
    """Of three scores the customer's deviation counts half, as a ratio to the median customer's."""
    histories = scorers.histories(graph.histories)
    candidates = np.arange(1, 80, 2)
    scale = scorers.scale(histories)
    personal = scorers.block(candidates).personal(histories, scale)
    reference = list(scorers.block(scorers.reference).raw(histories))
    for place, (name, raw) in enumerate(zip(scorers.names, scorers.block(candidates).raw(histories), strict=True)):
        above = raw - reference[place].mean(axis=1, keepdims=True)
        deviation = reference[place].std(axis=1, keepdims=True)
        apart = deviation > 1e-6
        if name in {"facts", "ridge", "ease+ridge"}:
            deviation = np.sqrt(deviation * np.median(deviation[apart]))
        expected = above if name == _LOG_LIKELIHOOD else np.arcsinh(above / np.where(apart, deviation, np.inf))
        np.testing.assert_allclose(personal[place], expected, rtol=1e-3, atol=1e-3, err_msg=name)
    assert personal[scorers.names.index(_LOG_LIKELIHOOD)].std() > 0.01


@pytest.mark.parametrize(("n_candidates", "n_chunks"), [(1, 1), (10_000, 22), (10_000_000, 700)])
def test_chunks_cover_every_user_once_and_are_smaller_for_more_candidates(n_candidates: int, n_chunks: int) -> None:
    histories = sparse.csr_array(np.ones((700, 3), dtype=np.float32))
    chunks = _chunks(histories, n_candidates)
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    assert (chunks[0].start, chunks[-1].stop) == (0, 700)
    assert len(chunks) == n_chunks


def test_chunks_are_smaller_where_steps_over_many_warm_items_are_taken() -> None:
    histories = sparse.csr_array((700, 40_000), dtype=np.float32)
    assert len(_chunks(histories, 129)) == 7
    assert len(_chunks(histories, 128)) == 1


def test_asinh_is_that_of_numpy() -> None:
    size = np.concatenate([[0], np.logspace(-8, 8, 400)])
    values = np.concatenate([-size, size]).astype(np.float32)
    expected = np.arcsinh(values.astype(np.float64))
    _asinh(values)
    np.testing.assert_allclose(values, expected, rtol=3e-7, atol=3e-7)
