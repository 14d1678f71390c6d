"""The frozen graph: histories in order, nothing from after the cut, cold where told to be cold.

u1 bought p1 (at 10, again at 90), p2 (at 30), p3 (no clock)       u2 bought p1 (at 60)
p1 BOUGHT_WITH p2, counted until 40; p2 BOUGHT_WITH p3, counted until 80        new SIMILAR_TO p1, since 70
p1, p2, p3 are of brand acme; new is on sale from 70
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from kg import Facts, GraphStore, KnowledgeGraph, Vocabulary, open_store, schema, snapshot
from kg.snapshot import strength_of


@pytest.fixture
def shop() -> GraphStore:
    store = open_store("memory:")
    store.write_nodes(
        schema.PRODUCT,
        pl.DataFrame(
            {
                "key": ["p3", "p1", "new", "p2"],
                "name": ["Three", "One", "New", "Two"],
                "price": [3.0, None, 9.0, 2.0],
                "available_from": [None, 0, 70, 5],
            }
        ),
    )
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["u1", "u2", "u3"]}))
    store.write_nodes(schema.BRAND, pl.DataFrame({"key": ["acme"], "name": ["Acme"]}))
    write(store, schema.MADE_BY, [("p1", "acme"), ("p2", "acme"), ("p3", "acme"), ("new", "acme")], source="catalogue")
    write(
        store,
        schema.INTERACTED,
        [("u1", "p1"), ("u1", "p2"), ("u1", "p3"), ("u2", "p1")],
        source="behaviour",
        at=[10, 30, None, 60],
        last_at=[90, 30, None, 60],
        weight=[2.0, 1.0, 1.0, 1.0],
    )
    write(store, schema.BOUGHT_WITH, [("p1", "p2"), ("p2", "p3")], source="behaviour", lift=[4.0, 6.0], until=[40, 80])
    write(store, schema.SIMILAR_TO, [("new", "p1")], source="text", score=[0.5], at=[70])
    return store


def write(store: GraphStore, relation: schema.Relation, pairs: list[tuple[str, str]], **columns: Any) -> None:
    frame = pl.DataFrame({"head": [head for head, _ in pairs], "tail": [tail for _, tail in pairs]})
    store.write_edges(
        relation,
        frame.with_columns(
            **{
                name: pl.lit(values) if isinstance(values, str) else pl.Series(values)
                for name, values in columns.items()
            }
        ),
    )


def facts_of(graph: KnowledgeGraph, relation: schema.Relation) -> list[tuple[Any, ...]]:
    """(head key, tail key, weight, at, order) of each fact, sorted."""
    facts = graph.facts[relation]
    heads, tails = graph.vocabularies[relation.head_label], graph.vocabularies[relation.tail_label]
    return sorted(
        (heads.keys[head], tails.keys[tail], weight, at, order)
        for head, tail, weight, at, order in zip(
            *(array.tolist() for array in (facts.heads, facts.tails, facts.weights, facts.at, facts.order)), strict=True
        )
    )


def test_everything_is_there_when_nothing_is_cut(shop: GraphStore) -> None:
    graph = snapshot(shop, until=None)
    assert graph.items.keys == ("new", "p1", "p2", "p3")
    assert graph.users.keys == ("u1", "u2", "u3")
    assert graph.products["name"].to_list() == ["New", "One", "Two", "Three"]
    # u1's history, oldest first: p3 (no clock), p2 (last at 30), p1 (last at 90).
    assert facts_of(graph, schema.INTERACTED) == [
        ("u1", "p1", 2.0, 10, 2),
        ("u1", "p2", 1.0, 30, 1),
        ("u1", "p3", 1.0, -1, 0),
        ("u2", "p1", 1.0, 60, 0),
    ]
    assert facts_of(graph, schema.BOUGHT_WITH) == [("p1", "p2", 4.0, -1, 0), ("p2", "p3", 6.0, -1, 0)]
    assert facts_of(graph, schema.SIMILAR_TO) == [("new", "p1", 0.5, 70, 0)]
    assert len(graph.facts[schema.MADE_BY]) == 4
    assert graph.n_events.tolist() == [0, 2, 1, 1]


def test_shapes_and_types(shop: GraphStore) -> None:
    graph = snapshot(shop, until=None)
    for facts in graph.facts.values():
        arrays = (facts.heads, facts.tails, facts.weights, facts.at, facts.order)
        assert {array.shape for array in arrays} == {(len(facts),)}
        assert [array.dtype for array in arrays] == [np.int64, np.int64, np.float32, np.int64, np.int64]
    assert graph.interactions.shape == (3, 4)
    assert graph.interactions.dtype == np.float32
    assert graph.interactions.toarray().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert graph.matrix(schema.INTERACTED).toarray()[0].tolist() == [0, 2, 1, 1]
    assert graph.matrix(schema.MADE_BY).shape == (4, 1)
    assert graph.n_events.shape == (4,)


def test_nothing_from_after_the_cut_is_seen(shop: GraphStore) -> None:
    graph = snapshot(shop, until=50)
    assert graph.items.keys == ("p1", "p2", "p3")
    # The second purchase of p1 is in the future: weight 1, and p1 is older than p2. No clock stays the oldest.
    assert facts_of(graph, schema.INTERACTED) == [
        ("u1", "p1", 1.0, 10, 1),
        ("u1", "p2", 1.0, 30, 2),
        ("u1", "p3", 1.0, -1, 0),
    ]
    assert facts_of(graph, schema.BOUGHT_WITH) == [("p1", "p2", 4.0, -1, 0)]
    assert facts_of(graph, schema.SIMILAR_TO) == []
    assert len(graph.facts[schema.MADE_BY]) == 3
    assert graph.until == 50


def test_the_cut_itself_is_inside(shop: GraphStore) -> None:
    assert len(snapshot(shop, until=60).facts[schema.INTERACTED]) == 4
    assert len(snapshot(shop, until=59).facts[schema.INTERACTED]) == 3
    assert snapshot(shop, until=70).items.keys == ("new", "p1", "p2", "p3")


def test_position_orders_a_history_without_a_clock() -> None:
    store = open_store("memory:")
    store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": ["a", "b", "c"]}))
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["u"]}))
    write(store, schema.INTERACTED, [("u", "a"), ("u", "b"), ("u", "c")], source="behaviour", position=[7, 0, 3])
    facts = snapshot(store, until=None).facts[schema.INTERACTED]
    assert facts.tails[np.argsort(facts.order)].tolist() == [1, 2, 0]


def test_histories_hold_strengths_oldest_first(shop: GraphStore) -> None:
    histories = snapshot(shop, until=None).histories
    assert histories.shape == (3, 4)
    assert np.split(histories.indices, histories.indptr[1:-1])[0].tolist() == [3, 2, 1]
    np.testing.assert_allclose(histories.data, np.log2([2, 2, 3, 2]), rtol=1e-6)
    looks = strength_of(np.array([0.2, 0.4, 1.0], dtype=np.float32))
    assert 0 < looks[0] < looks[1] < looks[2] == 1


def test_cold_items_have_no_behaviour_left_and_keep_the_rest(shop: GraphStore) -> None:
    graph = snapshot(shop, until=None)
    cold = graph.without_behaviour(graph.items.nums(["p2"]))
    assert facts_of(cold, schema.INTERACTED) == [
        ("u1", "p1", 2.0, 10, 2),
        ("u1", "p3", 1.0, -1, 0),
        ("u2", "p1", 1.0, 60, 0),
    ]
    assert facts_of(cold, schema.BOUGHT_WITH) == []
    assert len(cold.facts[schema.MADE_BY]) == 4
    assert cold.n_events.tolist() == [0, 2, 0, 1]
    assert cold.interactions.toarray().tolist() == [[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert graph.n_events.tolist() == [0, 2, 1, 1], "the first graph is as it was"
    assert facts_of(graph.without_behaviour(np.array([], dtype=np.int64)), schema.BOUGHT_WITH) == facts_of(
        graph, schema.BOUGHT_WITH
    )


def test_the_hash_tells_contents_apart_and_nothing_else(shop: GraphStore) -> None:
    before = snapshot(shop, until=None).content_hash
    assert snapshot(shop, until=None).content_hash == before
    assert snapshot(shop, until=50).content_hash != before
    changes: list[tuple[str, Any, Any]] = [
        ("node", schema.PRODUCT, {"key": ["p1"], "name": ["Uno"]}),
        ("node", schema.PRODUCT, {"key": ["p1"], "name": ["One"], "price": [1.0]}),
        ("node", schema.CUSTOMER, {"key": ["u9"]}),
        ("edge", schema.INTERACTED, {"head": ["u1"], "tail": ["p1"], "source": ["behaviour"], "weight": [3.0]}),
        ("edge", schema.MADE_BY, {"head": ["p1"], "tail": ["acme"], "source": ["catalogue"], "at": [1]}),
        # Only the order of u1's history changes.
        ("edge", schema.INTERACTED, {"head": ["u1"], "tail": ["p2"], "source": ["behaviour"], "last_at": [95]}),
        # Nothing changes that models see: p3 is the oldest of u1's history with any position.
        ("edge", schema.INTERACTED, {"head": ["u1"], "tail": ["p3"], "source": ["behaviour"], "position": [5]}),
    ]
    seen = {before}
    for kind, where, columns in changes:
        frame = pl.DataFrame(columns)
        shop.write_nodes(where, frame) if kind == "node" else shop.write_edges(where, frame)
        seen.add(snapshot(shop, until=None).content_hash)
    assert len(seen) == len(changes)


def test_an_empty_store_gives_an_empty_graph() -> None:
    graph = snapshot(open_store("memory:"), until=None)
    assert graph.interactions.shape == (0, 0)
    assert graph.n_events.tolist() == []
    assert all(len(facts) == 0 for facts in graph.facts.values())


def test_vocabularies_are_inverse_and_know_what_they_do_not_know() -> None:
    vocabulary = Vocabulary(["b", "a", "新"])
    assert vocabulary.nums(["新", "b", "?"]).tolist() == [2, 0, -1]
    assert vocabulary.nums([]).shape == (0,)
    assert [vocabulary.keys[vocabulary.num(key)] for key in vocabulary.keys] == ["b", "a", "新"]
    assert "a" in vocabulary
    assert "?" not in vocabulary
    assert len(vocabulary) == 3
    with pytest.raises(KeyError):
        vocabulary.num("?")
    with pytest.raises(ValueError, match="1 keys occur twice"):
        Vocabulary(["a", "a"])


def test_facts_are_selected_together() -> None:
    facts = Facts(
        heads=np.array([0, 1]),
        tails=np.array([2, 3]),
        weights=np.array([1, 2], dtype=np.float32),
        at=np.array([5, 6]),
        last_at=np.array([7, 8]),
        order=np.array([0, 1]),
    ).select(np.array([False, True]))
    assert (facts.heads.tolist(), facts.tails.tolist(), facts.weights.tolist()) == ([1], [3], [2.0])
    assert (facts.at.tolist(), facts.last_at.tolist(), facts.order.tolist()) == ([6], [8], [1])


def test_what_is_aligned_already_stays_as_it_is(shop: GraphStore) -> None:
    graph = snapshot(shop, until=None)
    assert graph.aligned(graph.items.keys[:2]) is graph
    assert graph.aligned(graph.items.keys[::-1]).items.keys == graph.items.keys[::-1]
    assert graph.aligned([*graph.items.keys, "gone"]).items.keys == (*graph.items.keys, "gone")


def test_a_launch_leaves_labels_without_new_nodes_as_they_are(shop: GraphStore) -> None:
    graph = snapshot(shop, until=None)
    nodes = {
        schema.PRODUCT: pl.DataFrame({"key": ["p4"], "name": ["Four"]}),
        schema.BRAND: pl.DataFrame(schema={"key": pl.String, "name": pl.String}),
    }
    made_by = {schema.MADE_BY: pl.DataFrame({"head": ["p4"], "tail": ["acme"]})}
    launched = graph.extended(nodes, made_by)
    assert launched.items.keys == (*graph.items.keys, "p4")
    assert launched.names[schema.BRAND] == ["Acme"]
    assert launched.vocabularies[schema.BRAND] is graph.vocabularies[schema.BRAND]
    assert launched.facts[schema.MADE_BY].heads.tolist() == [0, 1, 2, 3, 4]
    assert launched.facts[schema.INTERACTED] is graph.facts[schema.INTERACTED]
