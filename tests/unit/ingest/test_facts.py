import polars as pl
import pytest

from ingest.facts import (
    EVENT_COLUMNS,
    TAXONOMY_COLUMNS,
    GraphTables,
    also_bought,
    attribute_key,
    brand_key,
    category_key,
    conform,
    edge_columns,
    interactions,
    item_facts,
    items_frame,
    node_columns,
    number_bucket,
    taxonomy_facts,
)
from ingest.rows import Item
from kg import schema
from kg.schema import LABELS, RELATIONS


def facts(*rows):
    return item_facts([Item.model_validate(row) for row in rows])


def pairs(tables, relation):
    return tables.edges[relation].select("head", "tail").rows()


def test_columns_are_those_of_the_schema():
    for label in LABELS:
        assert node_columns(label).names() == ["key", *schema.NODE_PROPERTIES[label]]
    for relation in RELATIONS:
        assert edge_columns(relation).names() == ["head", "tail", *schema.EDGE_PROPERTIES[relation]]


def test_companions_are_those_of_sold_items_that_join_something():
    rows = [
        {"item_id": "a", "also_bought": ["b", "x", "new", "a", "alone"]},
        {"item_id": "b", "also_bought": ["x"]},
        {"item_id": "new", "also_bought": ["a", "x"]},
    ]
    tables = also_bought(items_frame(Item.model_validate(row) for row in rows), pl.Series(["a", "b"]))
    assert tables.nodes[schema.COMPANION]["key"].to_list() == ["b", "x"]
    assert pairs(tables, schema.ALSO_BOUGHT) == [("a", "b"), ("a", "x"), ("b", "x")]
    assert set(tables.edges[schema.ALSO_BOUGHT]["source"]) == {"behaviour"}


def test_conform_fills_drops_casts_and_sorts():
    table = conform(pl.DataFrame({"key": ["b", "a"], "name": ["B", "A"], "extra": [1, 2]}), node_columns(schema.BRAND))
    assert table.rows() == [("a", "A"), ("b", "B")]


def test_category_keys_are_unambiguous():
    assert category_key(["Kitchen", "Coffee"]) == "Kitchen > Coffee"
    assert category_key(["Kitchen > Coffee"]) == r"Kitchen \> Coffee"
    paths = [["a", "b"], ["a > b"], ["a \\> b"], ["a \\", "b"], ["a", "\\ > b"], ["a\\\\ > b"]]
    assert len({category_key(path) for path in paths}) == len(paths)


def test_attribute_and_brand_keys():
    assert attribute_key("Colour", "Red") == "colour=red"
    assert attribute_key("a=b", "c") != attribute_key("a", "b=c")
    assert brand_key("STRASSE") == brand_key("Straße") == "strasse"


def test_very_long_keys_stay_short_and_different():
    one, other = (attribute_key("text", "語" * 5_000 + end) for end in "ab")
    assert one != other
    assert max(len(one.encode()), len(other.encode())) < 2_000


@pytest.mark.parametrize(
    ("number", "bucket"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1, "1 to 2"),
        (1.999, "1 to 2"),
        (2, "2 to 5"),
        (5, "5 to 10"),
        (9.99, "5 to 10"),
        (10, "10 to 20"),
        (0.2, "0.2 to 0.5"),
        (0.3, "0.2 to 0.5"),
        (0.001, "0.001 to 0.002"),
        (1000, "1000 to 2000"),
        (123456789, "100000000 to 200000000"),
        (-3, "-5 to -2"),
        (3e12, "2e12 to 5e12"),
        (2.5e-9, "2e-9 to 5e-9"),
        (1.7e308, "1e308 to 2e308"),
        (5e-324, "2e-324 to 5e-324"),
    ],
)
def test_number_buckets(number, bucket):
    if number == 5e-324:  # the smallest number there is; its bucket need only exist
        assert " to " in number_bucket(number)
    else:
        assert number_bucket(number) == bucket


def test_every_power_of_ten_begins_its_bucket():
    for exponent in range(-300, 300):
        lower, _, upper = number_bucket(float(f"1e{exponent}")).partition(" to ")
        assert (float(lower), float(upper)) == (float(f"1e{exponent}"), float(f"2e{exponent}"))


def test_one_item_with_everything():
    """The shop of this test: one moka pot, drawn whole."""
    tables = facts(
        {
            "item_id": "i1",
            "title": "Moka pot",
            "description": "Brews coffee",
            "category_path": ["Kitchen", "Coffee", "Pots"],
            "categories": ["Gifts", "Coffee"],
            "brand": "Alder",
            "attributes": {"Cups": [4, 3], "colour": ["Red", "red"], "induction": True},
            "price": 30,
            "available_from": 1000,
            "image": "i.jpg",
        }
    )
    assert tables.nodes[schema.PRODUCT].rows() == [("i1", "Moka pot", "Brews coffee", 30.0, 1000, "i.jpg")]
    assert tables.nodes[schema.CATEGORY].rows() == [
        ("Gifts", "Gifts", "catalogue"),
        ("Kitchen", "Kitchen", "catalogue"),
        ("Kitchen > Coffee", "Coffee", "catalogue"),
        ("Kitchen > Coffee > Pots", "Pots", "catalogue"),
    ]
    assert tables.edges[schema.IN_CATEGORY].rows() == [
        ("i1", "Gifts", "catalogue", 1000),
        ("i1", "Kitchen > Coffee > Pots", "catalogue", 1000),
    ]
    assert tables.edges[schema.SUBCATEGORY_OF].rows() == [
        ("Kitchen > Coffee", "Kitchen", "catalogue", None),
        ("Kitchen > Coffee > Pots", "Kitchen > Coffee", "catalogue", None),
    ]
    assert tables.nodes[schema.BRAND].rows() == [("alder", "Alder")]
    assert tables.edges[schema.MADE_BY].rows() == [("i1", "alder", "catalogue", 1000)]
    assert tables.nodes[schema.ATTRIBUTE].rows() == [
        ("colour=red", "colour: Red", "colour", "Red"),
        ("cups=2 to 5", "Cups: 2 to 5", "Cups", "2 to 5"),
        ("induction=yes", "induction: yes", "induction", "yes"),
    ]
    assert tables.edges[schema.HAS_ATTRIBUTE].rows() == [
        ("i1", "colour=red", "catalogue", 1000, None),
        ("i1", "cups=2 to 5", "catalogue", 1000, 3.0),
        ("i1", "induction=yes", "catalogue", 1000, None),
    ]


def test_a_bare_item_brings_itself_and_nothing_else():
    tables = facts({"item_id": "i1"})
    assert tables.nodes[schema.PRODUCT].rows() == [("i1", None, None, None, None, None)]
    assert sum(table.height for table in tables.edges.values()) == 0


def test_shared_nodes_bear_the_name_that_is_written_most_often():
    tables = facts(*({"item_id": str(num), "brand": brand} for num, brand in enumerate(("opi", "OPI", "OPI", "Opi"))))
    assert tables.nodes[schema.BRAND].rows() == [("opi", "OPI")]
    tied = facts({"item_id": "1", "brand": "b"}, {"item_id": "2", "brand": "B"})
    assert tied.nodes[schema.BRAND].rows() == [("b", "B")]


def test_one_item_and_many_take_the_same_way():
    rows = [{"item_id": "1", "brand": "A", "attributes": {"n": 3}}, {"item_id": "2", "category_path": ["X", "Y"]}]
    items = [Item.model_validate(row) for row in rows]
    whole, parts = item_facts(items_frame(items)), [item_facts([item]) for item in items]
    for relation, table in whole.edges.items():
        assert table.rows() == pl.concat([part.edges[relation] for part in parts]).sort("head", "tail").rows()


def test_without_known_leaves_edges_alone():
    tables = facts({"item_id": "1", "brand": "A", "category_path": ["X", "Y"]})
    new = tables.without_known({schema.BRAND: {"a"}, schema.CATEGORY: {"X"}})
    assert new.nodes[schema.BRAND].height == 0
    assert new.nodes[schema.CATEGORY]["key"].to_list() == ["X > Y"]
    assert new.nodes[schema.PRODUCT].height == 1
    assert new.edges == tables.edges


def test_interactions_are_one_edge_per_customer_and_product():
    events = pl.DataFrame(
        [
            ("u1", "i1", "view", 100, None, 0.2),
            ("u1", "i1", "buy", 200, None, 1.0),
            ("u1", "i1", "scroll", 300, None, 5.0),
            ("u1", "i2", None, None, 7, 1.0),
            ("u1", "i2", None, None, 9, 1.0),
            ("u2", "i2", "view", 50, 1, 0.2),
        ],
        schema=EVENT_COLUMNS,
        orient="row",
    )
    tables = interactions(events)
    assert tables.nodes[schema.CUSTOMER].rows() == [("u1",), ("u2",)]
    # head, tail, source, at, last_at, position, kind, weight
    assert tables.edges[schema.INTERACTED].rows() == [
        ("u1", "i1", "behaviour", 100, 300, None, "buy", 6.2),
        ("u1", "i2", "behaviour", None, None, 9, None, 2.0),
        ("u2", "i2", "behaviour", 50, 50, 1, "view", 0.2),
    ]


def test_no_events():
    tables = interactions(pl.DataFrame(schema=EVENT_COLUMNS))
    assert tables.edges[schema.INTERACTED].rows() == tables.nodes[schema.CUSTOMER].rows() == []


# --- taxonomies ---


def taxonomy(*concepts):
    rows = [(iri, labels[0] if labels else iri, list(labels), list(broader)) for iri, labels, broader in concepts]
    return pl.DataFrame(rows, schema=TAXONOMY_COLUMNS, orient="row")


CATALOGUE = (
    {"item_id": "1", "category_path": ["Kitchen", "Coffee"]},
    {"item_id": "2", "category_path": ["Office", "Coffee"]},
    {"item_id": "3", "category_path": ["Office", "Pens"]},
)


def joined(*concepts):
    tables, cycles = taxonomy_facts(taxonomy(*concepts), facts(*CATALOGUE))
    return tables.nodes[schema.CATEGORY]["key"].to_list(), pairs(tables, schema.SUBCATEGORY_OF), cycles


def test_a_concept_with_the_whole_path_is_that_category():
    nodes, edges, _ = joined(("t:k", ["Kitchen"], []), ("t:c", ["Coffee"], ["t:k"]), ("t:x", ["Beans"], ["t:c"]))
    assert nodes == ["t:x"]
    assert edges == [("t:x", "Kitchen > Coffee")]  # the other link is in the catalogue already


def test_a_concept_with_the_only_fitting_name_is_that_category():
    nodes, edges, _ = joined(("t:d", ["Desk"], []), ("t:p", ["Stifte", "pens"], ["t:d"]))
    assert nodes == ["t:d"]
    assert edges == [("Office > Pens", "t:d")]


def test_an_ambiguous_name_joins_nothing():
    nodes, _, _ = joined(("t:c", ["Coffee"], []))  # two categories of that name
    assert nodes == ["t:c"]
    nodes, _, _ = joined(("t:1", ["Pens"], []), ("t:2", ["Pens"], []))  # two concepts of that name
    assert nodes == ["t:1", "t:2"]


def test_a_concept_with_two_parents_keeps_both():
    nodes, edges, _ = joined(("t:a", ["A"], []), ("t:b", ["B"], []), ("t:p", ["Pens"], ["t:a", "t:b"]))
    assert edges == [("Office > Pens", "t:a"), ("Office > Pens", "t:b")]
    assert nodes == ["t:a", "t:b"]


def test_links_that_close_a_cycle_are_left_out():
    _, edges, cycles = joined(("t:a", ["A"], ["t:b"]), ("t:b", ["B"], ["t:c"]), ("t:c", ["C"], ["t:a"]))
    assert edges == [("t:a", "t:b"), ("t:b", "t:c")]
    assert cycles == [("t:c", "t:a")]
    _, edges, cycles = joined(("t:a", ["A"], ["t:a"]))
    assert (edges, cycles) == ([], [("t:a", "t:a")])


def test_a_taxonomy_may_not_turn_the_catalogue_upside_down():
    _, edges, cycles = joined(("t:o", ["Office"], ["t:p"]), ("t:p", ["Pens"], []))
    assert (edges, cycles) == ([], [("t:o", "t:p")])


def test_links_to_concepts_that_nobody_describes_are_not_made_up():
    assert joined(("t:a", ["A"], ["t:nowhere"])) == (["t:a"], [], [])


def test_graph_tables_compare_by_identity():
    assert GraphTables({}, {}) != GraphTables({}, {})
