"""Walks are true where their edges are; each edge is asked for once."""

import pytest

from kg import METAPATHS, Relation, schema
from kg.stores.walks import Pair, sources_of_walks

METAPATH = {metapath.name: metapath for metapath in METAPATHS}
EDGES: dict[Relation, dict[Pair, str]] = {
    schema.INTERACTED: {("u1", "p1"): "behaviour", ("u2", "p1"): "behaviour", ("u2", "p2"): "behaviour"},
    schema.MADE_BY: {("p1", "acme"): "catalogue", ("p2", "acme"): "person"},
}


class Asked:
    """Knows EDGES, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.pairs: dict[Relation, list[Pair]] = {}

    def __call__(self, relation: Relation, pairs: list[Pair]) -> dict[Pair, str]:
        assert relation not in self.pairs, "each relation is asked for once"
        self.pairs[relation] = pairs
        return {pair: EDGES[relation][pair] for pair in pairs if pair in EDGES[relation]}


def test_sources_come_in_the_order_of_the_edges_and_false_walks_are_none() -> None:
    asked = Asked()
    walks = [
        ("u1", "p1", "acme", "p2"),
        ("u2", "p1", "acme", "p2"),
        ("u1", "p2", "acme", "p1"),
        ("u1", "p1", "x", "p2"),
    ]
    true = ("behaviour", "catalogue", "person")
    assert sources_of_walks(METAPATH["same_brand"], walks, asked) == [true, true, None, None]
    assert sorted(asked.pairs[schema.INTERACTED]) == [("u1", "p1"), ("u1", "p2"), ("u2", "p1")]
    assert sorted(asked.pairs[schema.MADE_BY]) == [("p1", "acme"), ("p1", "x"), ("p2", "acme"), ("p2", "x")]


def test_a_walk_that_turns_back_is_none_though_its_edges_exist() -> None:
    assert sources_of_walks(METAPATH["same_brand"], [("u1", "p1", "acme", "p1")], Asked()) == [None]


def test_the_same_key_under_two_labels_is_two_nodes() -> None:
    def all_true(relation: Relation, pairs: list[Pair]) -> dict[Pair, str]:
        return dict.fromkeys(pairs, "person")

    walks = [("x", "p1", "x", "p2"), ("x", "x", "x", "p2"), ("x", "p1", "p1", "p1")]
    assert sources_of_walks(METAPATH["same_brand"], walks, all_true) == [("person",) * 3, ("person",) * 3, None]


def test_no_walks_ask_nothing_and_a_wrong_length_is_refused() -> None:
    asked = Asked()
    assert sources_of_walks(METAPATH["same_brand"], [], asked) == []
    assert asked.pairs == {}
    with pytest.raises(ValueError, match="has 3 nodes; metapath 'same_brand' has 4"):
        sources_of_walks(METAPATH["same_brand"], [("u1", "p1", "acme")], asked)
