from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from checkerboard import COLOURS, checkerboard
from scipy import sparse
from torch.nn import functional

from encoders.content import ItemContent, ItemFacts
from encoders.graph import GraphEncoder, Pairs, _dropped, _Graph, _Network, _optimizer, _principal, _together
from encoders.text import TextEncoder
from kg import KnowledgeGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_STEPS = 30


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return checkerboard()


def content_of(graph: KnowledgeGraph, text_encoder: TextEncoder) -> ItemContent:
    return ItemContent.fit(ItemFacts.of(graph), text_encoder)


def views_of(content: ItemContent) -> dict[str, sparse.csr_array]:
    rows = {"words": content.bags["words"], "brands": content.bags["brands"], "text": sparse.csr_array(content.text)}
    return {name: sparse.csr_array(matrix @ matrix.T) for name, matrix in rows.items()}


def rows_of(content: ItemContent, item_nums: NDArray[np.int64]) -> dict[str, sparse.csr_array]:
    return {name: sparse.csr_array(matrix[item_nums]) for name, matrix in views_of(content).items()}


def fit(content: ItemContent, graph: KnowledgeGraph, seed: int = 0) -> GraphEncoder:
    return GraphEncoder.fit(
        content,
        graph.interactions,
        pairs=Pairs(views_of(content)),
        n_steps=N_STEPS,
        embedding_size=16,
        seed=seed,
        device="cpu",
    )


def test_new_items_lie_beside_the_known_ones_of_their_colour(graph: KnowledgeGraph, text_encoder: TextEncoder) -> None:
    content = content_of(graph, text_encoder)
    encoder = fit(content, graph)
    assert encoder.vectors.shape == (80, 16)
    np.testing.assert_allclose(np.linalg.norm(encoder.vectors, axis=1), 1, atol=1e-5)
    known, new = np.flatnonzero(graph.n_events > 0), np.flatnonzero(graph.n_events == 0)
    kernel = encoder.kernel(known, new, rows_of(content, new))
    assert kernel.said.shape == kernel.bought.shape == (len(known), len(new))
    assert kernel.said_total.shape == kernel.bought_total.shape == (len(known),)
    nearest = known[kernel.said.argmax(axis=0)]
    assert (nearest % len(COLOURS) == new % len(COLOURS)).all()


def test_an_item_never_seen_gets_the_vector_it_would_have_had_in_training(
    graph: KnowledgeGraph, text_encoder: TextEncoder
) -> None:
    content = content_of(graph, text_encoder)
    encoder = fit(content, graph)
    new = np.flatnonzero(graph.n_events == 0)
    np.testing.assert_allclose(encoder.encode(content, new), encoder.vectors[new], atol=1e-5)
    encoder.put(content, np.array([80]) - 1)
    assert len(encoder.vectors) == 80


def test_items_that_are_read_again_unchanged_keep_their_vectors(
    graph: KnowledgeGraph, text_encoder: TextEncoder
) -> None:
    """Those that sell too: what is bought with them is a part of their vector."""
    content = content_of(graph, text_encoder)
    encoder = fit(content, graph)
    before = encoder.vectors.copy()
    encoder.put(content, np.arange(80))
    np.testing.assert_allclose(encoder.vectors, before, atol=1e-5)


def test_no_learned_number_belongs_to_an_item(graph: KnowledgeGraph, text_encoder: TextEncoder) -> None:
    encoder = fit(content_of(graph, text_encoder), graph)
    for tensor in encoder._network.parameters():
        assert len(graph.items) not in tensor.shape
        assert len(graph.users) not in tensor.shape


def test_a_shop_without_new_items_trains_the_same_network(graph: KnowledgeGraph, text_encoder: TextEncoder) -> None:
    """New items are encoded, never learned from: their interactions do not exist, so nothing of them can matter."""
    content = content_of(graph, text_encoder)
    whole = fit(content, graph)
    lost = np.flatnonzero(graph.n_events > 0)[:1]
    other = fit(content, graph.without_behaviour(lost))
    moved = np.abs(whole.vectors[lost] - other.vectors[lost]).max()
    assert moved > 1e-4, "behaviour of an item must matter to its own vector"
    np.testing.assert_allclose(other.encode(content, lost), other.vectors[lost], atol=1e-5)


def test_the_same_seed_gives_the_same_encoder(graph: KnowledgeGraph, text_encoder: TextEncoder) -> None:
    content = content_of(graph, text_encoder)
    np.testing.assert_array_equal(fit(content, graph).vectors, fit(content, graph).vectors)
    assert np.abs(fit(content, graph).vectors - fit(content, graph, seed=1).vectors).max() > 1e-4


def test_saving_and_loading_gives_the_same(graph: KnowledgeGraph, text_encoder: TextEncoder, tmp_path: Path) -> None:
    content = content_of(graph, text_encoder)
    encoder = fit(content, graph)
    encoder.save(tmp_path)
    loaded = GraphEncoder.load(tmp_path, device="cpu")
    nums = np.arange(80)
    np.testing.assert_array_equal(loaded.vectors, encoder.vectors)
    np.testing.assert_array_equal(loaded.encode(content, nums), encoder.encode(content, nums))
    histories = sparse.csr_array(np.eye(80, dtype=np.float32))
    np.testing.assert_array_equal(
        loaded.kernel(nums, nums, views_of(content)).score(histories),
        encoder.kernel(nums, nums, views_of(content)).score(histories),
    )
    assert loaded.gates() == encoder.gates()
    assert loaded.fingerprint == encoder.fingerprint
    with torch.no_grad():
        loaded._network.together.gate += 1e-3
    assert loaded.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("missing", ["text", "brands"])
def test_shops_that_lack_text_or_graph_still_train(missing: str, text_encoder: TextEncoder) -> None:
    graph = checkerboard(text=missing != "text", brands=missing != "brands")
    encoder = fit(content_of(graph, text_encoder), graph)
    assert np.isfinite(encoder.vectors).all()


def test_pairs_hold_what_each_view_says() -> None:
    words = sparse.csr_array(np.array([[0, 0.5, 0.25], [0.5, 0, 0]], dtype=np.float32))
    brands = sparse.csr_array(np.array([[0, 0, 1], [0, 0, 0]], dtype=np.float32))
    pairs = Pairs({"words": words, "brands": brands})
    np.testing.assert_array_equal(pairs.starts, [0, 2, 3])
    np.testing.assert_array_equal(pairs.others, [1, 2, 0])
    np.testing.assert_array_equal(pairs.features, [[0.5, 1, 0, 0], [0.25, 0.5, 1, 1], [0.5, 1, 0, 0]])
    rows, numbers = pairs.of(np.array([1, 0]), np.array([True, False, True]))
    np.testing.assert_array_equal(rows, [0, 1])
    np.testing.assert_array_equal(numbers, [2, 1])


def test_pairs_of_items_without_any_content_are_none() -> None:
    pairs = Pairs({"words": sparse.csr_array((3, 3), dtype=np.float32)})
    assert len(pairs.others) == 0
    assert pairs.features.shape == (0, 2)


def test_a_history_scores_as_its_items_do(graph: KnowledgeGraph, text_encoder: TextEncoder) -> None:
    """The score is a log of means: of two alike histories together it is what each alone has."""
    content = content_of(graph, text_encoder)
    encoder = fit(content, graph)
    known, new = np.flatnonzero(graph.n_events > 0), np.flatnonzero(graph.n_events == 0)
    kernel = encoder.kernel(known, new, rows_of(content, new))
    alone = kernel.score(sparse.csr_array(np.eye(len(known), dtype=np.float32)))
    assert alone.shape == (len(known), len(new))
    both = np.zeros((1, len(known)), dtype=np.float32)
    both[0, :2] = 1
    together = kernel.score(sparse.csr_array(both))[0]
    assert (together <= alone[:2].max(axis=0) + 1e-4).all()
    assert (together >= alone[:2].min(axis=0) - 1e-4).all()


def test_dropout_drops_its_share_and_keeps_the_rest() -> None:
    inputs = np.arange(1, 401, dtype=np.float32)[:, None] * np.ones((1, 500), dtype=np.float32)
    rows, memory = np.arange(3, 400, 2), np.empty_like(inputs)
    dropped = _dropped(inputs, rows, 0.2, np.random.default_rng(0), memory).numpy()
    assert dropped.shape == (len(rows), 500)
    assert float((dropped == 0).mean()) == pytest.approx(0.2, abs=0.01)
    assert np.all((dropped == 0) | (dropped == inputs[rows]))
    kept = _dropped(inputs, rows, 0.0, np.random.default_rng(0), memory)
    np.testing.assert_array_equal(kept.numpy(), inputs[rows])


def test_masked_items_that_are_left_out_change_nobodys_vector(graph: KnowledgeGraph, text_encoder: TextEncoder) -> None:
    content = content_of(graph, text_encoder)
    everything, rng = np.arange(len(content)), np.random.default_rng(0)
    graph_of_all = _Graph(content, everything, _together(graph.interactions), content.text[:3])
    seen = (rng.random(len(content)) < 0.6).astype(np.float32)
    targets = rng.permutation(np.flatnonzero(seen == 0))[:10]
    active = np.sort(np.concatenate([np.flatnonzero(seen), targets]))
    network = _Network(torch.from_numpy(_principal(content.dense, 16)), 8).eval()
    with torch.inference_mode():
        whole = network(torch.from_numpy(content.dense), graph_of_all.among(everything, seen, torch.device("cpu")))
        part = network(
            torch.from_numpy(content.dense[active]), graph_of_all.among(active, seen[active], torch.device("cpu"))
        )
    np.testing.assert_allclose(part.numpy(), whole.numpy()[active], atol=1e-6)
    unheard = functional.normalize(network.project(torch.from_numpy(content.dense[active])), dim=1).detach()
    assert not np.allclose(part.numpy(), unheard.numpy(), atol=1e-3)


@pytest.mark.parametrize(("n_steps", "n_rising"), [(20, 4), (3, 1)])
def test_rates_rise_for_a_fifth_of_the_steps_and_never_fall(n_steps: int, n_rising: int) -> None:
    optimizer, schedule = _optimizer(_Network(torch.zeros(4, 6), 8), 2e-3, 1e-4, n_steps)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.04 * 2e-3)
    assert (np.diff(rates[: n_rising + 1]) > 0).all()
    assert rates[n_rising:] == pytest.approx([2e-3] * (n_steps - n_rising))


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path) -> None:
    code = "from encoders.graph import GatedMean; GatedMean(2), GatedMean(2)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert not list(tmp_path.iterdir())
