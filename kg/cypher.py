"""Every Cypher text of firstshelf: writes, reads, deletes, metapath queries and the check of edges.

The texts keep to the subset that means the same on Neo4j 5 and on the embedded store: labels everywhere, fixed hops,
named relationships, explicit inequality instead of trail semantics, scalars returned under aliases. Values are always
parameters; labels, types and properties of the schema enter through ``quote_identifier``. ``tests/property`` holds
that both stores give the rows that brute force gives.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

from kg import schema
from kg.paths import Metapath
from kg.schema import Relation, quote_identifier

# The one node that keeps the mark of the last finished load; no part of the shop's graph.
_MARK: Final = "(w:`Workspace` {key: 'firstshelf'})"


def _q(name: str) -> str:
    return quote_identifier(name)


# Writes. All take $rows, a list of maps with the key columns and the named properties.


def unique_key(label: str) -> str:
    """Constraint (and so index) on the key of a label; without it every MERGE and MATCH by key is a scan."""
    return f"CREATE CONSTRAINT IF NOT EXISTS FOR (n:{_q(label)}) REQUIRE n.key IS UNIQUE"


def ping() -> str:
    """The least that a server can answer."""
    return "RETURN 1 AS one"


def await_indexes() -> str:
    """Neo4j alone: wait until the constraints' indexes answer, at most five minutes."""
    return "CALL db.awaitIndexes(300)"


def create_nodes(label: str, properties: Sequence[str]) -> str:
    """Nodes known to be new. Returns ``written``, the number of rows."""
    values = ", ".join(f"{_q(name)}: row.{_q(name)}" for name in ("key", *properties))
    return f"UNWIND $rows AS row\nCREATE (n:{_q(label)} {{{values}}})\nRETURN count(*) AS written"


def merge_nodes(label: str, properties: Sequence[str]) -> str:
    """Nodes by key; a null takes the property away. Returns ``written``."""
    # The embedded store answers a made-up name ("Customer_0") for a node whose name was never set, not even to null.
    unnamed = "" if "name" in properties else "ON CREATE SET n.name = null\n"
    return (
        f"UNWIND $rows AS row\nMERGE (n:{_q(label)} {{key: row.key}})\n"
        f"{unnamed}{_set('n', properties)}RETURN count(*) AS written"
    )


def create_edges(relation: Relation, properties: Sequence[str]) -> str:
    """Edges known to be new. Returns ``written``: fewer than the rows where an end does not exist."""
    values = ", ".join(f"{_q(name)}: row.{_q(name)}" for name in properties)
    return f"{_ends(relation)}CREATE (head)-[edge:{_q(relation.type)} {{{values}}}]->(tail)\nRETURN count(*) AS written"


def merge_edges(relation: Relation, properties: Sequence[str]) -> str:
    """Edges by their ends; a null takes the property away. Returns ``written`` as ``create_edges`` does."""
    return (
        f"{_ends(relation)}MERGE (head)-[edge:{_q(relation.type)}]->(tail)\n"
        f"{_set('edge', properties)}RETURN count(*) AS written"
    )


def _ends(relation: Relation) -> str:
    return (
        "UNWIND $rows AS row\n"
        f"MATCH (head:{_q(relation.head_label)} {{key: row.head}})\n"
        f"MATCH (tail:{_q(relation.tail_label)} {{key: row.tail}})\n"
    )


def _set(variable: str, properties: Sequence[str]) -> str:
    if not properties:
        return ""
    return "SET " + ", ".join(f"{variable}.{_q(name)} = row.{_q(name)}" for name in properties) + "\n"


# Deletes.


def delete_nodes(label: str) -> str:
    """Nodes with the $keys, and their edges."""
    return f"UNWIND $keys AS wanted\nMATCH (n:{_q(label)} {{key: wanted}})\nDETACH DELETE n"


def delete_edges(relation: Relation) -> str:
    """Edges with the ends of $rows (``head``, ``tail``)."""
    return f"UNWIND $rows AS row\n{_bound_edge(relation)}\nDELETE edge"


def delete_some_edges(relation: Relation) -> str:
    """At most $limit edges of a relation; repeated until nothing goes, so that no transaction grows without bound."""
    return f"{_edge_pattern(relation)}\nWITH edge LIMIT $limit\nDELETE edge"


def delete_all_nodes(label: str) -> str:
    """Every node of a label and its edges, in one step."""
    return f"MATCH (n:{_q(label)})\nDETACH DELETE n"


def delete_some_nodes(label: str) -> str:
    """At most $limit nodes of a label and their edges."""
    return f"MATCH (n:{_q(label)})\nWITH n LIMIT $limit\nDETACH DELETE n"


# Reads.


def existing_keys(label: str) -> str:
    """Those of $keys that a node of the label has, as ``found_key``."""
    return f"UNWIND $keys AS wanted\nMATCH (n:{_q(label)} {{key: wanted}})\nRETURN n.key AS found_key"


def read_nodes(label: str, properties: Sequence[str]) -> str:
    """All nodes: ``key`` and the properties, in no order."""
    values = ", ".join(f"n.{_q(name)} AS {_q(name)}" for name in ("key", *properties))
    return f"MATCH (n:{_q(label)})\nRETURN {values}"


def read_edges(relation: Relation, properties: Sequence[str]) -> str:
    """All edges: the keys of the ends as ``head_key`` and ``tail_key``, and the properties, in no order."""
    values = "".join(f", edge.{_q(name)} AS {_q(name)}" for name in properties)
    return f"{_edge_pattern(relation)}\nRETURN head.key AS head_key, tail.key AS tail_key{values}"


def edge_sources(relation: Relation) -> str:
    """Those edges of $rows (``head``, ``tail``) that exist: ``head_key``, ``tail_key``, ``edge_source``."""
    return (
        f"UNWIND $rows AS row\n{_bound_edge(relation)}\n"
        "RETURN row.head AS head_key, row.tail AS tail_key, edge.source AS edge_source"
    )


def any_node(label: str) -> str:
    """One row where the label has a node, none where it is empty."""
    return f"MATCH (n:{_q(label)})\nRETURN n.key AS found_key LIMIT 1"


def any_edge(relation: Relation) -> str:
    """One row where the relation has an edge, none where it is empty."""
    return f"{_edge_pattern(relation)}\nRETURN head.key AS head_key LIMIT 1"


def count_nodes(label: str) -> str:
    """Number of nodes of a label, as ``n_nodes``."""
    return f"MATCH (n:{_q(label)})\nRETURN count(n) AS n_nodes"


def count_edges(relation: Relation) -> str:
    """Number of edges of a relation, as ``n_edges``."""
    return f"{_edge_pattern(relation)}\nRETURN count(edge) AS n_edges"


def _edge_pattern(relation: Relation) -> str:
    return f"MATCH (head:{_q(relation.head_label)})-[edge:{_q(relation.type)}]->(tail:{_q(relation.tail_label)})"


def _bound_edge(relation: Relation) -> str:
    return (
        f"MATCH (head:{_q(relation.head_label)} {{key: row.head}})"
        f"-[edge:{_q(relation.type)}]->(tail:{_q(relation.tail_label)} {{key: row.tail}})"
    )


# The mark of the last finished load.


def get_mark() -> str:
    """The mark, as ``found_mark``."""
    return f"MATCH {_MARK}\nRETURN w.mark AS found_mark"


def set_mark() -> str:
    """Set $mark on the node that keeps it."""
    return f"MERGE {_MARK}\nSET w.mark = $mark"


def delete_mark() -> str:
    """Take the node away that keeps the mark."""
    return f"MATCH {_MARK}\nDETACH DELETE w"


# Metapaths. Relationships are called step_1, step_2, …; nodes after their label, numbered where a label comes twice;
# the product where the walk ends is ``recommended``.


def match_query(metapath: Metapath) -> str:
    """Every walk of a metapath from nodes with a key in $starts to nodes with a key in $ends.

    Returns one column per node, its key, under the node's name in the text and ``_key``; rows sorted, no duplicates.
    No node comes twice in a walk.
    """
    names = _names(metapath)
    bounds = [f"{names[0]}.key IN $starts", f"{names[-1]}.key IN $ends"]
    aliases = [f"{name}_key" for name in names]
    columns = [f"{name}.key AS {alias}" for name, alias in zip(names, aliases, strict=True)]
    return "\n".join(
        (
            f"MATCH {_walk(metapath, names, lambda _: '')}",
            _where(bounds + _differences(metapath, names)),
            f"RETURN DISTINCT {_listed(columns)}",
            f"ORDER BY {', '.join(aliases)}",
        )
    )


def explain_query(metapath: Metapath) -> str:
    """Every walk of a metapath between two nodes, for reading: keys, names and the sources of the edges.

    Parameters: $start and $end, the two keys. ``browser_parameters({"start": …, "end": …})`` is the line that sets
    them in Neo4j Browser.
    """
    names = _names(metapath)
    ends = {names[0]: " {key: $start}", names[-1]: " {key: $end}"}
    differences = _differences(metapath, names)
    columns = [f"{names[0]}.key AS {names[0]}_key"]
    for number, name in enumerate(names[1:], start=1):
        columns.append(f"step_{number}.source AS step_{number}_source")
        columns.append(f"{name}.key AS {name}_key, {name}.name AS {name}_name")
    return "\n".join(
        (
            f"MATCH {_walk(metapath, names, lambda name: ends.get(name, ''))}",
            *([_where(differences)] if differences else []),
            f"RETURN {_listed(columns)}",
            f"ORDER BY {', '.join(f'{name}_key' for name in names)}",
        )
    )


def browser_parameters(parameters: Mapping[str, Any]) -> str:
    """The ``:params`` command that sets parameters (strings, numbers, lists of them) in Neo4j Browser.

    JSON strings and lists are Cypher literals too; the names of a Cypher map stand bare.
    """
    values = ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in parameters.items())
    return f":params {{{values}}}"


def _names(metapath: Metapath) -> list[str]:
    labels = metapath.labels[:-1] if metapath.labels[-1] == schema.PRODUCT else metapath.labels
    total, seen = Counter(labels), Counter[str]()
    names = []
    for label in labels:
        seen[label] += 1
        names.append(label.lower() if total[label] == 1 else f"{label.lower()}_{seen[label]}")
    return [*names, "recommended"] if len(labels) < len(metapath.labels) else names


def _walk(metapath: Metapath, names: Sequence[str], bound: Callable[[str], str]) -> str:
    nodes = [f"({name}:{_q(label)}{bound(name)})" for name, label in zip(names, metapath.labels, strict=True)]
    text = nodes[0]
    for number, (step, node) in enumerate(zip(metapath.steps, nodes[1:], strict=True), start=1):
        edge = f"[step_{number}:{_q(step.relation.type)}]"
        text += f"\n      -{edge}->{node}" if step.forward else f"\n      <-{edge}-{node}"
    return text


def _differences(metapath: Metapath, names: Sequence[str]) -> list[str]:
    pairs = combinations(zip(names, metapath.labels, strict=True), 2)
    return [
        f"{left}.key <> {right}.key" for (left, left_label), (right, right_label) in pairs if left_label == right_label
    ]


def _where(conditions: Sequence[str]) -> str:
    return "WHERE " + "\n  AND ".join(conditions)


def _listed(columns: Sequence[str]) -> str:
    return ",\n       ".join(columns)
