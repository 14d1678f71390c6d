"""The schema of the knowledge graph: labels, relations, properties, provenance and the quoting of identifiers.

Every node has the string property ``key``, unique within its label. Every edge says where it comes from (``source``)
and since when (``at``, epoch seconds UTC, absent where the shop gave no clock).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Source = Literal["catalogue", "behaviour", "text", "taxonomy", "person"]
PropertyType = Literal["string", "integer", "float"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of edge: ``(head_label)-[:type]->(tail_label)``. At most one edge of a kind joins two nodes."""

    head_label: str
    type: str
    tail_label: str


PRODUCT: Final = "Product"
CATEGORY: Final = "Category"
BRAND: Final = "Brand"
ATTRIBUTE: Final = "Attribute"
CUSTOMER: Final = "Customer"
COMPANION: Final = "Companion"
"""What products are said to be bought with, by its id, whether the shop sells it or not."""

# Order matters to loaders: nodes are written in this order, then relations in theirs.
NODE_PROPERTIES: Final[dict[str, dict[str, PropertyType]]] = {
    CATEGORY: {"name": "string", "source": "string"},
    BRAND: {"name": "string"},
    ATTRIBUTE: {"name": "string", "attribute": "string", "value": "string"},
    PRODUCT: {
        "name": "string",
        "description": "string",
        "price": "float",
        "available_from": "integer",
        "image": "string",
    },
    CUSTOMER: {},
    COMPANION: {},
}

IN_CATEGORY: Final = Relation(PRODUCT, "IN_CATEGORY", CATEGORY)
SUBCATEGORY_OF: Final = Relation(CATEGORY, "SUBCATEGORY_OF", CATEGORY)
MADE_BY: Final = Relation(PRODUCT, "MADE_BY", BRAND)
HAS_ATTRIBUTE: Final = Relation(PRODUCT, "HAS_ATTRIBUTE", ATTRIBUTE)
INTERACTED: Final = Relation(CUSTOMER, "INTERACTED", PRODUCT)
BOUGHT_WITH: Final = Relation(PRODUCT, "BOUGHT_WITH", PRODUCT)
ALSO_BOUGHT: Final = Relation(PRODUCT, "ALSO_BOUGHT", COMPANION)
SIMILAR_TO: Final = Relation(PRODUCT, "SIMILAR_TO", PRODUCT)

# ``at`` of INTERACTED is the first time, ``last_at`` the last; ``position`` orders a customer's history where there is
# no clock. ``number`` of HAS_ATTRIBUTE keeps the exact number whose bucket the Attribute node is. ``until`` of
# BOUGHT_WITH is the last event that was counted.
EDGE_PROPERTIES: Final[dict[Relation, dict[str, PropertyType]]] = {
    IN_CATEGORY: {"source": "string", "at": "integer"},
    SUBCATEGORY_OF: {"source": "string", "at": "integer"},
    MADE_BY: {"source": "string", "at": "integer"},
    HAS_ATTRIBUTE: {"source": "string", "at": "integer", "number": "float"},
    INTERACTED: {
        "source": "string",
        "at": "integer",
        "last_at": "integer",
        "position": "integer",
        "kind": "string",
        "weight": "float",
    },
    BOUGHT_WITH: {"source": "string", "at": "integer", "until": "integer", "lift": "float", "support": "integer"},
    ALSO_BOUGHT: {"source": "string", "at": "integer"},
    SIMILAR_TO: {"source": "string", "at": "integer", "score": "float"},
}
LABELS: Final = tuple(NODE_PROPERTIES)
RELATIONS: Final = tuple(EDGE_PROPERTIES)
BEHAVIOURAL: Final = (INTERACTED, BOUGHT_WITH, ALSO_BOUGHT)
"""Relations that only what has been sold has: a cold product has none of them."""


def quote_identifier(name: str) -> str:
    """Quote a label, relation type or property name for Cypher; the only way by which identifiers enter a query.

    Raises ``ValueError`` for an empty name, one with a NUL character, which no store can hold, or one with a
    backslash before a "u": Neo4j 5 turns ``\\u0060`` into a backtick before it looks at quotes, which ends the name.
    """
    if not name or "\0" in name or "\\u" in name.lower():
        raise ValueError(
            f"identifier {name!r} is empty, or holds a NUL character or a unicode escape; give it visible characters"
        )
    return "`" + name.replace("`", "``") + "`"
