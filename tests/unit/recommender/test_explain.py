from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from checkerboard import histories_of

from kg import METAPATHS, KnowledgeGraph, schema
from kg.paths import Path, PathEdge, PathNode
from kg.store import GraphStore
from recommender.explain import Explainer, sentence

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse


def nums(graph: KnowledgeGraph, *items: str) -> np.ndarray:
    return graph.items.nums(items)


def history(graph: KnowledgeGraph, *items: str) -> sparse.csr_array:
    return histories_of(nums(graph, *items), n_items=len(graph.items))


def test_an_explanation_tells_the_best_path_and_how_to_see_it(graph: KnowledgeGraph, store: GraphStore) -> None:
    explainer = Explainer(graph, store)
    [explanation] = explainer.explain(["u1"], history(graph, "glue", "drill"), nums(graph, "epoxy"))
    assert explanation is not None
    assert explanation.sentence == "“Epoxy” is made by Gorilla, like “Super Glue” in the history."
    answer = explanation.to_json()
    assert answer["verified"] is True
    assert answer["parameters"] == {"start": "u1", "end": "epoxy"}
    best = answer["paths"][0]
    assert [node["key"] for node in best["nodes"]] == ["u1", "glue", "gorilla", "epoxy"]
    assert [(edge["type"], edge["forward"], edge["source"]) for edge in best["edges"]] == [
        ("INTERACTED", True, "behaviour"),
        ("MADE_BY", True, "catalogue"),
        ("MADE_BY", False, "catalogue"),
    ]
    assert len(answer["paths"]) == 3
    assert [path["score"] for path in answer["paths"]] == sorted((p["score"] for p in answer["paths"]), reverse=True)


def test_a_bare_history_starts_at_its_item(graph: KnowledgeGraph, store: GraphStore) -> None:
    [explanation] = Explainer(graph, store).explain([None], history(graph, "glue"), nums(graph, "epoxy"))
    assert explanation is not None
    assert explanation.paths[0].nodes[0].label == schema.PRODUCT
    assert explanation.parameters == {"start": "glue", "end": "epoxy"}


def test_no_path_is_none(graph: KnowledgeGraph, store: GraphStore) -> None:
    assert Explainer(graph, store).explain(["u1"], history(graph, "glue"), nums(graph, "stone")) == [None]


def test_a_path_that_the_store_no_longer_holds_is_not_told(graph: KnowledgeGraph, store: GraphStore) -> None:
    store.delete_edges(schema.MADE_BY, pl.DataFrame({"head": ["epoxy"], "tail": ["gorilla"]}))
    [explanation] = Explainer(graph, store).explain(["u1"], history(graph, "glue", "drill"), nums(graph, "epoxy"))
    assert explanation is not None
    assert all(path.metapath != "same_brand" for path in explanation.paths)


@pytest.mark.parametrize("metapath", METAPATHS, ids=lambda metapath: metapath.name)
def test_every_kind_of_path_has_a_sentence_with_its_names(metapath) -> None:
    nodes = tuple(PathNode(label, f"k{n}", f"Name{n}") for n, label in enumerate(metapath.labels))
    edges = tuple(PathEdge(step.relation.type, step.forward, "x") for step in metapath.steps)
    told = sentence(Path(nodes, edges, 0.5, metapath.name))
    assert "Name1" in told
    assert nodes[-1].name in told
    assert told.endswith(".")
    without_customer = sentence(Path(nodes[1:], edges[1:], 0.5, metapath.name))
    assert without_customer == told
