"""What a trained ranker must not know: anything that the behaviour of new items would tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkerboard import COLOURS, checkerboard, tiny_text_model, with_companions

from kg import KnowledgeGraph, schema
from recommender.ranker import Ranker


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_text_model(tmp_path_factory.mktemp("text")))


def right_share(graph: KnowledgeGraph, text_model: str) -> float:
    """Share of shown new items that have the customer's colour; chance is 1 / 4."""
    ranker = Ranker.fit(graph, text_model=text_model)
    nums = ranker.rank(graph.histories, k=4, pool="new").item_nums
    users = np.arange(len(nums))[:, None]
    return float((nums % len(COLOURS) == users % len(COLOURS)).mean())


def test_shuffled_labels_fall_to_chance(text_model: str) -> None:
    assert right_share(checkerboard(), text_model) > 0.9
    assert right_share(checkerboard(shuffled=True), text_model) < 0.45


def test_co_purchase_edges_of_new_items_are_not_read(text_model: str) -> None:
    """BOUGHT_WITH, SIMILAR_TO and ALSO_BOUGHT edges planted on new items change nothing of what is learned."""
    graph = checkerboard(n_items=40, n_users=60, n_new=8)
    new = np.flatnonzero(graph.n_events == 0)
    facts = graph.facts[schema.BOUGHT_WITH]
    planted = replace(
        facts,
        heads=new,
        tails=new - 8,
        weights=np.full(8, 9, dtype=np.float32),
        at=np.full(8, -1),
        last_at=np.full(8, -1),
        order=np.zeros(8, dtype=np.int64),
    )
    leaky = replace(graph, facts={**graph.facts, schema.BOUGHT_WITH: planted, schema.SIMILAR_TO: planted})
    leaky = with_companions(leaky, [(num, f"i{num - 8:04}") for num in new] + [(num - 8, f"i{num:04}") for num in new])
    clean, fed = (Ranker.fit(one, text_model=text_model) for one in (graph, leaky))
    assert clean.fingerprint == fed.fingerprint


def test_no_learned_array_grows_with_new_items(text_model: str, tmp_path: Path) -> None:
    """Learned weights have the same shapes whether a shop has 8 new items or none: no table of ids."""
    from safetensors.numpy import load_file

    shapes = []
    for graph in (checkerboard(n_items=40, n_users=60, n_new=8), checkerboard(n_items=40, n_users=60, n_new=0)):
        folder = tmp_path / str(len(shapes))
        Ranker.fit(graph, text_model=text_model).save(folder)
        network = load_file(folder / "graph" / "graph.safetensors")
        shapes.append({name: array.shape for name, array in network.items() if name.startswith("network.")})
        for stratum in ("new", "known"):
            shapes[-1].update(
                {name: array.shape for name, array in load_file(folder / f"fusion-{stratum}.safetensors").items()}
            )
    first, second = ({name: shape for name, shape in one.items() if "project" not in name} for one in shapes)
    assert first == second
