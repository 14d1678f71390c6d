"""What ``GraphStore`` promises, held by every implementation.

The twelve-node shop of these tests:

    (Category tools)◀─SUBCATEGORY_OF─(saws)◀─IN_CATEGORY─ p1, p2
                    ◀─SUBCATEGORY_OF─(drills)◀─IN_CATEGORY─ p3, new
    (Brand acme)◀─MADE_BY─ p1, p3, new       (Attribute colour=red)◀─HAS_ATTRIBUTE─ p2, new
    u1 ─INTERACTED─▶ p1, p2      u2 ─INTERACTED─▶ p2       p1 ─BOUGHT_WITH─▶ p2       new ─SIMILAR_TO─▶ p1
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kg import METAPATHS, GraphStore, Metapath, Relation, WriteCount, cypher, open_store, schema, snapshot
from kg.errors import StoreError

METAPATH = {metapath.name: metapath for metapath in METAPATHS}

NODES: dict[str, list[dict[str, Any]]] = {
    schema.CATEGORY: [{"key": key, "name": key.title(), "source": "catalogue"} for key in ("tools", "saws", "drills")],
    schema.BRAND: [{"key": "acme", "name": "Acme"}],
    schema.ATTRIBUTE: [{"key": "colour=red", "name": "colour: red", "attribute": "colour", "value": "red"}],
    schema.PRODUCT: [
        {"key": "p1", "name": "Hand saw", "price": 12.5, "available_from": 1_300_000_000},
        {"key": "p2", "name": "Red saw", "price": None, "available_from": None},
        {"key": "p3", "name": None, "price": 99.0, "available_from": None},
        {"key": "new", "name": "Red drill", "price": 80.0, "available_from": 1_400_000_000},
    ],
    schema.CUSTOMER: [{"key": "u1"}, {"key": "u2"}, {"key": "u3"}],
}
EDGES: dict[Relation, list[dict[str, Any]]] = {
    schema.IN_CATEGORY: [
        {"head": head, "tail": tail, "source": "catalogue"}
        for head, tail in [("p1", "saws"), ("p2", "saws"), ("p3", "drills"), ("new", "drills")]
    ],
    schema.SUBCATEGORY_OF: [{"head": key, "tail": "tools", "source": "taxonomy"} for key in ("saws", "drills")],
    schema.MADE_BY: [{"head": key, "tail": "acme", "source": "catalogue"} for key in ("p1", "p3", "new")],
    schema.HAS_ATTRIBUTE: [{"head": key, "tail": "colour=red", "source": "catalogue"} for key in ("p2", "new")],
    schema.INTERACTED: [
        {"head": "u1", "tail": "p1", "source": "behaviour", "at": 1_350_000_000, "weight": 2.0, "kind": "buy"},
        {"head": "u1", "tail": "p2", "source": "behaviour", "at": None, "weight": 1.0, "kind": "view"},
        {"head": "u2", "tail": "p2", "source": "behaviour", "at": None, "weight": 1.0, "kind": "buy"},
    ],
    schema.BOUGHT_WITH: [{"head": "p1", "tail": "p2", "source": "behaviour", "lift": 3.5, "support": 2}],
    schema.SIMILAR_TO: [{"head": "new", "tail": "p1", "source": "text", "score": 0.75}],
}
# Every walk from a customer to "new" in the drawing above, worked out by hand.
WALKS_TO_NEW = {
    "similar_text": [("u1", "p1", "new")],
    "bought_with": [],
    "same_brand": [("u1", "p1", "acme", "new")],
    "same_category": [],
    "shared_attribute": [("u1", "p2", "colour=red", "new"), ("u2", "p2", "colour=red", "new")],
    "sibling_category": [
        ("u1", "p1", "saws", "tools", "drills", "new"),
        ("u1", "p2", "saws", "tools", "drills", "new"),
        ("u2", "p2", "saws", "tools", "drills", "new"),
    ],
    "bought_with_similar_text": [],
    "bought_with_same_brand": [],
    "bought_with_same_category": [],
    "bought_with_shared_attribute": [("u1", "p1", "p2", "colour=red", "new")],
}

AWKWARD_KEYS = [
    "it's",
    'say "hi"',
    "back\\slash",
    "\\u0027",
    "tick`tick``",
    "a/b//c",
    "emoji 😀👩‍👩‍👧",
    "新品上市 · 電鑽",
    "' OR 1=1 //",
    "'}) DETACH DELETE n //",
    "`) MATCH (n) DETACH DELETE n //",
    "$starts",
    "{key: 1}",
    "new\nline\ttab",
    "trailing ",
    " leading",
    "e\u0301 é",
    "007",
    "1e3",
    "null",
    "x" * 2_000,
]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


def fill(store: GraphStore) -> WriteCount:
    count = WriteCount()
    for label, rows in NODES.items():
        count += store.write_nodes(label, frame(rows))
    for relation, rows in EDGES.items():
        count += store.write_edges(relation, frame(rows))
    return count


def contents(store: GraphStore) -> dict[Any, list[dict[str, Any]]]:
    found: dict[Any, list[dict[str, Any]]] = {label: store.nodes(label).to_dicts() for label in schema.LABELS}
    return found | {relation: store.edges(relation).to_dicts() for relation in schema.RELATIONS}


class TestGraphStore:
    def test_empty_store_reads_typed_empty_frames(self, store: GraphStore) -> None:
        assert store.nodes(schema.PRODUCT).schema == {
            "key": pl.String,
            "name": pl.String,
            "description": pl.String,
            "price": pl.Float64,
            "available_from": pl.Int64,
            "image": pl.String,
        }
        assert store.edges(schema.BOUGHT_WITH).schema == {
            "head": pl.String,
            "tail": pl.String,
            "source": pl.String,
            "at": pl.Int64,
            "until": pl.Int64,
            "lift": pl.Float64,
            "support": pl.Int64,
        }
        assert all(len(rows) == 0 for rows in contents(store).values())
        assert store.match(METAPATH["same_brand"], ["u1"], ["new"]) == []

    def test_reads_give_back_what_was_written_sorted_and_typed(self, store: GraphStore) -> None:
        assert fill(store) == WriteCount(added=12 + 16, updated=0)
        products = store.nodes(schema.PRODUCT)
        assert products["key"].to_list() == ["new", "p1", "p2", "p3"]
        assert products["price"].to_list() == [80.0, 12.5, None, 99.0]
        assert products["available_from"].to_list() == [1_400_000_000, 1_300_000_000, None, None]
        assert products["name"].to_list() == ["Red drill", "Hand saw", "Red saw", None]
        assert products["image"].to_list() == [None] * 4
        assert products.schema["image"] == pl.String
        interacted = store.edges(schema.INTERACTED)
        assert interacted.select("head", "tail").rows() == [("u1", "p1"), ("u1", "p2"), ("u2", "p2")]
        assert interacted["at"].to_list() == [1_350_000_000, None, None]
        assert interacted["weight"].to_list() == [2.0, 1.0, 1.0]
        assert interacted["position"].dtype == pl.Int64
        for relation, rows in EDGES.items():
            read = store.edges(relation)
            assert sorted(read.select("head", "tail").rows()) == sorted((row["head"], row["tail"]) for row in rows)
            assert read.select("head", "tail").rows() == sorted(read.select("head", "tail").rows())

    def test_loading_twice_is_loading_once(self, store: GraphStore) -> None:
        first = fill(store)
        before = contents(store)
        assert fill(store) == WriteCount(added=0, updated=first.added)
        assert contents(store) == before

    def test_a_changed_row_updates_its_properties_alone(self, store: GraphStore) -> None:
        fill(store)
        count = store.write_nodes(schema.PRODUCT, frame([{"key": "p1", "price": 13.0}, {"key": "p9", "price": 1.0}]))
        assert count == WriteCount(added=1, updated=1)
        products = {row["key"]: row for row in store.nodes(schema.PRODUCT).to_dicts()}
        assert products["p1"]["price"] == 13.0
        assert products["p1"]["name"] == "Hand saw"
        assert products["p9"]["name"] is None
        changed = frame([{"head": "u1", "tail": "p1", "source": "person", "weight": 5.0}])
        assert store.write_edges(schema.INTERACTED, changed) == WriteCount(added=0, updated=1)
        edge = store.edges(schema.INTERACTED).row(0, named=True)
        assert (edge["weight"], edge["source"], edge["kind"]) == (5.0, "person", "buy")

    def test_a_null_removes_a_property(self, store: GraphStore) -> None:
        fill(store)
        store.write_nodes(schema.PRODUCT, frame([{"key": "p1", "name": None, "price": None}]))
        assert store.nodes(schema.PRODUCT).row(1, named=True) == {
            "key": "p1",
            "name": None,
            "description": None,
            "price": None,
            "available_from": 1_300_000_000,
            "image": None,
        }
        store.write_edges(
            schema.INTERACTED, frame([{"head": "u1", "tail": "p1", "source": "behaviour", "kind": None, "at": None}])
        )
        edge = store.edges(schema.INTERACTED).row(0, named=True)
        assert (edge["kind"], edge["at"], edge["weight"]) == (None, None, 2.0)

    def test_of_rows_with_one_key_the_last_wins(self, store: GraphStore) -> None:
        rows = frame([{"key": "a", "name": "first"}, {"key": "b", "name": "b"}, {"key": "a", "name": "last"}])
        assert store.write_nodes(schema.BRAND, rows) == WriteCount(added=2, updated=1)
        assert store.nodes(schema.BRAND)["name"].to_list() == ["last", "b"]

    @pytest.mark.parametrize(
        ("head", "tail", "lost"), [("p1", "nobody", "Brand 'nobody'"), ("nothing", "acme", "Product 'nothing'")]
    )
    def test_an_edge_without_its_end_is_refused_and_nothing_is_made_up(
        self, store: GraphStore, head: str, tail: str, lost: str
    ) -> None:
        fill(store)
        before = contents(store)
        rows = [("p2", "acme"), (head, tail)]
        edges = frame([{"head": head, "tail": tail, "source": "catalogue"} for head, tail in rows])
        with pytest.raises(StoreError, match=lost):
            store.write_edges(schema.MADE_BY, edges)
        assert contents(store) == before

    def test_an_edge_without_its_end_is_refused_in_an_empty_relation_too(self, store: GraphStore) -> None:
        for label, rows in NODES.items():
            store.write_nodes(label, frame(rows))
        edges = frame([{"head": head, "tail": "acme", "source": "catalogue"} for head in ("p1", "gone")])
        with pytest.raises(StoreError, match="gone"):
            store.write_edges(schema.MADE_BY, edges)
        assert len(store.edges(schema.MADE_BY)) == 0

    def test_deletes_tell_what_went(self, store: GraphStore) -> None:
        fill(store)
        assert (
            store.delete_edges(schema.MADE_BY, frame([{"head": "p1", "tail": "acme"}, {"head": "p2", "tail": "acme"}]))
            == 1
        )
        assert store.edges(schema.MADE_BY)["head"].to_list() == ["new", "p3"]
        assert store.delete_nodes(schema.PRODUCT, ["new", "absent", "new"]) == 1
        assert store.nodes(schema.PRODUCT)["key"].to_list() == ["p1", "p2", "p3"]
        assert "new" not in {key for relation in schema.RELATIONS for key in store.edges(relation)["head"]}
        assert len(store.edges(schema.SIMILAR_TO)) == 0
        assert store.delete_nodes(schema.PRODUCT, []) == 0
        assert store.delete_edges(schema.MADE_BY, frame([{"head": "x", "tail": "y"}])) == 0

    def test_a_key_is_unique_within_its_label_only(self, store: GraphStore) -> None:
        store.write_nodes(schema.BRAND, frame([{"key": "same", "name": "brand"}]))
        store.write_nodes(schema.CATEGORY, frame([{"key": "same", "name": "category"}]))
        assert store.delete_nodes(schema.BRAND, ["same"]) == 1
        assert store.nodes(schema.CATEGORY)["name"].to_list() == ["category"]

    def test_awkward_keys_are_only_keys(self, store: GraphStore) -> None:
        fill(store)
        keys = [*AWKWARD_KEYS, "p1"]
        store.write_nodes(schema.PRODUCT, frame([{"key": key, "name": key} for key in AWKWARD_KEYS]))
        store.write_nodes(schema.CUSTOMER, frame([{"key": key} for key in AWKWARD_KEYS]))
        edges = frame([{"head": key, "tail": "acme", "source": "catalogue"} for key in AWKWARD_KEYS])
        store.write_edges(schema.MADE_BY, edges)
        bought = frame([{"head": key, "tail": "p1", "source": "behaviour"} for key in AWKWARD_KEYS])
        store.write_edges(schema.INTERACTED, bought)
        products = store.nodes(schema.PRODUCT).filter(pl.col("key").is_in(AWKWARD_KEYS))
        assert products["key"].to_list() == sorted(AWKWARD_KEYS)
        assert products["name"].to_list() == sorted(AWKWARD_KEYS)
        walks = [(key, "p1", "acme", other) for key in AWKWARD_KEYS for other in AWKWARD_KEYS]
        assert store.match(METAPATH["same_brand"], AWKWARD_KEYS, AWKWARD_KEYS) == sorted(walks)
        sources = ("behaviour", "catalogue", "catalogue")
        assert store.holds(METAPATH["same_brand"], walks) == [sources] * len(walks)
        assert store.delete_nodes(schema.PRODUCT, AWKWARD_KEYS) == len(AWKWARD_KEYS)
        assert set(store.nodes(schema.PRODUCT)["key"]) == {"p1", "p2", "p3", "new"}
        assert len(keys) == len(set(keys))

    @pytest.mark.parametrize("metapath", METAPATHS, ids=lambda metapath: metapath.name)
    def test_match_gives_the_walks_of_the_drawing(self, store: GraphStore, metapath: Metapath) -> None:
        fill(store)
        walks = WALKS_TO_NEW[metapath.name]
        assert store.match(metapath, ["u1", "u2", "u3", "unknown"], ["new", "unknown"]) == walks
        assert store.match(metapath, ["u2"], ["new"]) == [walk for walk in walks if walk[0] == "u2"]
        assert store.match(metapath, [], ["new"]) == store.match(metapath, ["u1"], []) == []
        history = metapath.from_history()
        assert store.match(history, ["p1", "p2", "p1"], ["new"]) == sorted({walk[1:] for walk in walks})

    def test_match_never_visits_a_node_twice(self, store: GraphStore) -> None:
        fill(store)
        # u1 has p1 already: no walk goes from p1 to p1 through their common brand or category.
        assert store.match(METAPATH["same_brand"], ["u1"], ["p1"]) == []
        # Nor does a sibling category lead back into the category it came from.
        assert store.match(METAPATH["sibling_category"], ["u2"], ["p1", "p2"]) == []
        assert store.match(METAPATH["same_category"], ["u1"], ["p1", "p2"]) == [
            ("u1", "p1", "saws", "p2"),
            ("u1", "p2", "saws", "p1"),
        ]

    def test_holds_gives_the_sources_of_true_walks_alone(self, store: GraphStore) -> None:
        fill(store)
        walks = [
            ("u1", "p1", "saws", "tools", "drills", "new"),
            ("u3", "p1", "saws", "tools", "drills", "new"),
            ("u1", "p1", "saws", "tools", "saws", "p2"),
            ("u1", "p1", "saws", "tools", "drills", "unknown"),
            ("u1", "p2", "saws", "tools", "drills", "p3"),
            ("u1", "p1", "saws", "tools", "drills", "new"),
        ]
        true = ("behaviour", "catalogue", "taxonomy", "taxonomy", "catalogue")
        assert store.holds(METAPATH["sibling_category"], walks) == [true, None, None, None, true, true]
        assert store.holds(METAPATH["similar_text"], [("u1", "p1", "new"), ("u1", "new", "p1")]) == [
            ("behaviour", "text"),
            None,
        ]
        assert store.holds(METAPATH["similar_text"], []) == []
        with pytest.raises(ValueError, match="has 2 nodes"):
            store.holds(METAPATH["similar_text"], [("u1", "p1")])

    def test_what_match_finds_holds_until_an_edge_goes(self, store: GraphStore) -> None:
        fill(store)
        for metapath in METAPATHS:
            walks = store.match(metapath, ["u1", "u2"], ["p1", "p2", "p3", "new"])
            assert None not in store.holds(metapath, walks)
        walk = ("u1", "p1", "acme", "new")
        assert store.holds(METAPATH["same_brand"], [walk]) == [("behaviour", "catalogue", "catalogue")]
        store.delete_edges(schema.MADE_BY, frame([{"head": "new", "tail": "acme"}]))
        assert store.holds(METAPATH["same_brand"], [walk]) == [None]

    def test_the_mark_is_kept_and_is_no_part_of_the_graph(self, store: GraphStore) -> None:
        assert store.get_mark() is None
        store.set_mark("cafe")
        store.set_mark("beef")
        assert store.get_mark() == "beef"
        assert all(len(rows) == 0 for rows in contents(store).values())
        store.set_mark(None)
        assert store.get_mark() is None

    def test_clear_takes_everything_and_the_store_can_be_filled_again(self, store: GraphStore) -> None:
        first = fill(store)
        store.set_mark("cafe")
        store.clear()
        assert all(len(rows) == 0 for rows in contents(store).values())
        assert store.get_mark() is None
        assert fill(store) == first

    def test_a_snapshot_is_the_same_from_every_store(self, store: GraphStore) -> None:
        memory = open_store("memory:")
        fill(memory)
        fill(store)
        for until in (None, 1_360_000_000):
            expected, found = snapshot(memory, until=until), snapshot(store, until=until)
            assert found.content_hash == expected.content_hash
            assert found.items.keys == expected.items.keys
            assert found.products.equals(expected.products)
        assert snapshot(store, until=None).content_hash != snapshot(store, until=1_360_000_000).content_hash

    def test_progress_adds_up_to_the_rows(self, store: GraphStore) -> None:
        seen: list[int] = []
        rows = frame([{"key": f"u{num}"} for num in range(25_000)])
        assert store.write_nodes(schema.CUSTOMER, rows, progress=seen.append).added == 25_000
        assert sum(seen) == 25_000

    def test_frames_outside_the_schema_are_refused(self, store: GraphStore) -> None:
        with pytest.raises(ValueError, match="'colour'"):
            store.write_nodes(schema.BRAND, frame([{"key": "a", "colour": "red"}]))
        with pytest.raises(ValueError, match="Nothing"):
            store.write_nodes("Nothing", frame([{"key": "a"}]))
        with pytest.raises(ValueError, match="source"):
            store.write_edges(schema.MADE_BY, frame([{"head": "p1", "tail": "acme"}]))
        with pytest.raises(ValueError, match="MAKES"):
            store.edges(Relation(schema.BRAND, "MAKES", schema.PRODUCT))
        with pytest.raises(StoreError, match="no key"):
            store.write_nodes(schema.BRAND, pl.DataFrame({"key": ["a", None]}))
        with pytest.raises(StoreError, match="NaN"):
            store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": ["a"], "price": [float("nan")]}))
        with pytest.raises(StoreError, match="'rumour'"):
            store.write_edges(schema.MADE_BY, frame([{"head": "p1", "tail": "acme", "source": "rumour"}]))
        assert len(store.nodes(schema.BRAND)) == 0

    def test_a_closed_store_says_so(self, store: GraphStore) -> None:
        fill(store)
        store.close()
        store.close()
        for use in (
            lambda: store.nodes(schema.BRAND),
            lambda: store.edges(schema.MADE_BY),
            lambda: store.write_nodes(schema.BRAND, frame([{"key": "b"}])),
            lambda: store.write_edges(schema.MADE_BY, frame([{"head": "p1", "tail": "acme", "source": "person"}])),
            lambda: store.delete_nodes(schema.BRAND, ["acme"]),
            lambda: store.delete_edges(schema.MADE_BY, frame([{"head": "p1", "tail": "acme"}])),
            lambda: store.match(METAPATH["same_brand"], ["u1"], ["new"]),
            lambda: store.holds(METAPATH["same_brand"], [("u1", "p1", "acme", "new")]),
            store.get_mark,
            lambda: store.set_mark("x"),
            store.clear,
        ):
            with pytest.raises(StoreError, match="closed"):
                use()

    def test_a_store_speaks_cypher_or_says_that_it_does_not(self, store: GraphStore) -> None:
        fill(store)
        if store.speaks_cypher:
            assert store.run(cypher.count_nodes(schema.PRODUCT), {}) == [{"n_nodes": 4}]
        else:
            with pytest.raises(StoreError, match="does not speak Cypher"):
                store.run(cypher.count_nodes(schema.PRODUCT), {})


class TestCypherStore:
    """What stores promise on top that take Cypher text."""

    @pytest.mark.parametrize("metapath", METAPATHS, ids=lambda metapath: metapath.name)
    def test_the_texts_shown_to_analysts_run_as_they_are(self, cypher_store: GraphStore, metapath: Metapath) -> None:
        fill(cypher_store)
        walks = WALKS_TO_NEW[metapath.name]
        rows = cypher_store.run(cypher.match_query(metapath), {"starts": ["u1", "u2"], "ends": ["new"]})
        assert [tuple(row.values()) for row in rows] == walks
        for walk in walks:
            rows = cypher_store.run(cypher.explain_query(metapath), {"start": walk[0], "end": walk[-1]})
            assert walk in [tuple(value for name, value in row.items() if name.endswith("_key")) for row in rows]

    def test_an_explanation_names_its_nodes_and_sources(self, cypher_store: GraphStore) -> None:
        fill(cypher_store)
        text = cypher.explain_query(METAPATH["similar_text"])
        assert cypher_store.run(text, {"start": "u1", "end": "new"}) == [
            {
                "customer_key": "u1",
                "step_1_source": "behaviour",
                "product_key": "p1",
                "product_name": "Hand saw",
                "step_2_source": "text",
                "recommended_key": "new",
                "recommended_name": "Red drill",
            }
        ]

    def test_a_node_without_a_name_has_none(self, cypher_store: GraphStore) -> None:
        fill(cypher_store)
        text = "MATCH (c:Customer) RETURN c.key AS customer_key, c.name AS shown ORDER BY customer_key"
        assert cypher_store.run(text, {}) == [{"customer_key": key, "shown": None} for key in ("u1", "u2", "u3")]
        assert cypher_store.run(cypher.count_edges(schema.MADE_BY), {}) == [{"n_edges": 3}]

    def test_run_never_writes(self, cypher_store: GraphStore) -> None:
        fill(cypher_store)
        before = contents(cypher_store)
        for text in (
            "CREATE (n:Product {key: $key})",
            "MATCH (n:Product) SET n.price = 0",
            "MATCH (n) DETACH DELETE n",
            cypher.unique_key("Other"),
        ):
            with pytest.raises(StoreError):
                cypher_store.run(text, {"key": "made up"})
        assert contents(cypher_store) == before
        assert cypher_store.write_nodes(schema.PRODUCT, frame([{"key": "p9"}])).added == 1

    def test_a_broken_query_is_a_clear_error(self, cypher_store: GraphStore) -> None:
        with pytest.raises(StoreError, match="refused"):
            cypher_store.run("MATCH (n:Product RETURN n", {})
        with pytest.raises(StoreError, match="refused"):
            cypher_store.run("MATCH (n:Product {key: $key}) RETURN n.key AS product_key", {})
