"""The texts, as an analyst sees them; that they are true is held by the contract and property tests."""

import re

import pytest

from kg import METAPATHS, Metapath, Step, cypher, schema

METAPATH = {metapath.name: metapath for metapath in METAPATHS}


def test_a_metapath_reads_like_a_sentence() -> None:
    assert cypher.match_query(METAPATH["same_brand"]) == (
        "MATCH (customer:`Customer`)\n"
        "      -[step_1:`INTERACTED`]->(product:`Product`)\n"
        "      -[step_2:`MADE_BY`]->(brand:`Brand`)\n"
        "      <-[step_3:`MADE_BY`]-(recommended:`Product`)\n"
        "WHERE customer.key IN $starts\n"
        "  AND recommended.key IN $ends\n"
        "  AND product.key <> recommended.key\n"
        "RETURN DISTINCT customer.key AS customer_key,\n"
        "       product.key AS product_key,\n"
        "       brand.key AS brand_key,\n"
        "       recommended.key AS recommended_key\n"
        "ORDER BY customer_key, product_key, brand_key, recommended_key"
    )


def test_nodes_of_one_label_are_numbered_and_all_differ() -> None:
    text = cypher.match_query(METAPATH["sibling_category"])
    differences = set(re.findall(r"(\w+)\.key <> (\w+)\.key", text))
    assert differences == {
        ("product", "recommended"),
        ("category_1", "category_2"),
        ("category_1", "category_3"),
        ("category_2", "category_3"),
    }


def test_an_explanation_from_the_history_starts_at_the_product() -> None:
    text = cypher.explain_query(METAPATH["similar_text"].from_history())
    assert text == (
        "MATCH (product:`Product` {key: $start})\n"
        "      <-[step_1:`SIMILAR_TO`]-(recommended:`Product` {key: $end})\n"
        "WHERE product.key <> recommended.key\n"
        "RETURN product.key AS product_key,\n"
        "       step_1.source AS step_1_source,\n"
        "       recommended.key AS recommended_key, recommended.name AS recommended_name\n"
        "ORDER BY product_key, recommended_key"
    )


def test_a_walk_without_two_nodes_of_a_label_needs_no_where() -> None:
    brands = Metapath("brands", (Step(schema.INTERACTED, True), Step(schema.MADE_BY, True)))
    assert "WHERE" not in cypher.explain_query(brands)
    assert "(brand:`Brand` {key: $end})" in cypher.explain_query(brands)


@pytest.mark.parametrize("metapath", METAPATHS, ids=lambda metapath: metapath.name)
def test_every_relationship_is_named_labelled_and_of_one_hop(metapath: Metapath) -> None:
    for text in (cypher.match_query(metapath), cypher.explain_query(metapath)):
        assert len(re.findall(r"\[step_\d+:`[A-Z_]+`\]", text)) == len(metapath.steps)
        assert len(re.findall(r"\(\w+:`\w+`", text)) == len(metapath.labels)
        assert "*" not in text


def test_values_are_parameters_in_every_write() -> None:
    for relation in schema.RELATIONS:
        properties = list(schema.EDGE_PROPERTIES[relation])
        for text in (cypher.create_edges(relation, properties), cypher.merge_edges(relation, properties)):
            assert text.startswith("UNWIND $rows AS row\n")
            assert f"(head:`{relation.head_label}` {{key: row.head}})" in text
            assert f"(tail:`{relation.tail_label}` {{key: row.tail}})" in text
            assert all(f"row.`{name}`" in text for name in properties)


def test_nodes_are_merged_on_their_key_alone() -> None:
    assert cypher.merge_nodes("Product", ["name", "price"]) == (
        "UNWIND $rows AS row\n"
        "MERGE (n:`Product` {key: row.key})\n"
        "SET n.`name` = row.`name`, n.`price` = row.`price`\n"
        "RETURN count(*) AS written"
    )
    assert "ON CREATE SET n.name = null" in cypher.merge_nodes("Customer", [])


def test_parameters_for_the_browser_are_literals() -> None:
    assert cypher.browser_parameters({"start": 'a"b\\c\n新', "ends": ["x"], "limit": 3}) == (
        ':params {start: "a\\"b\\\\c\\n新", ends: ["x"], limit: 3}'
    )
