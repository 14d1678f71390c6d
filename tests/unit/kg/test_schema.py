"""Identifiers are quoted once and for all; the schema hangs together."""

import pytest

from kg import schema
from kg.schema import quote_identifier


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("Product", "`Product`"),
        ("two words", "`two words`"),
        ("tick`tick", "`tick``tick`"),
        ("`) DETACH DELETE n //", "```) DETACH DELETE n //`"),
        ("品牌", "`品牌`"),
        ("back\\slash", "`back\\slash`"),
    ],
)
def test_quoting_doubles_backticks(name: str, quoted: str) -> None:
    assert quote_identifier(name) == quoted


# Neo4j 5 resolves unicode escapes before quotes: quoted alone, the third of these ran as Cypher.
@pytest.mark.parametrize("name", ["", "a\0b", "a\\u0060) DETACH DELETE n //", "A\\U0060"])
def test_names_that_no_quote_can_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        quote_identifier(name)


def test_relations_join_labels_of_the_schema() -> None:
    for relation in schema.RELATIONS:
        assert {relation.head_label, relation.tail_label} <= set(schema.LABELS)
        assert {"source", "at"} <= set(schema.EDGE_PROPERTIES[relation])


def test_a_type_names_one_relation() -> None:
    assert len({relation.type for relation in schema.RELATIONS}) == len(schema.RELATIONS)
    assert set(schema.BEHAVIOURAL) < set(schema.RELATIONS)
