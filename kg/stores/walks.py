"""The check of many walks through their distinct edges, for stores that are asked in Cypher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kg.paths import Metapath
from kg.schema import Relation

Pair = tuple[str, str]
"""(head key, tail key)"""
EdgeSources = Callable[[Relation, list[Pair]], dict[Pair, str]]
"""The ``source`` of those edges of a relation that exist."""


def sources_of_walks(
    metapath: Metapath, walks: Sequence[Sequence[str]], edge_sources: EdgeSources
) -> list[tuple[str, ...] | None]:
    """``GraphStore.holds``: a walk holds where each of its edges exists and no node comes twice.

    Many walks share edges: 34,000 walks of ``same_category`` between 1,500 customers and 877 products have 8,500.
    Asking for those, instead of a pattern with all nodes bound for each walk, took Neo4j from 7,600 to 42,000 walks a
    second (its planner expands whole categories) and the embedded store from 57,000 to 127,000.

    Raises:
        ValueError: a walk has another number of nodes than the metapath.
    """
    labels = metapath.labels
    wanted: dict[Relation, dict[Pair, None]] = {step.relation: {} for step in metapath.steps}
    for walk in walks:
        if len(walk) != len(labels):
            raise ValueError(
                f"walk {tuple(walk)!r} has {len(walk)} nodes; metapath {metapath.name!r} has {len(labels)}"
            )
        for relation, pair in _edges(metapath, walk):
            wanted[relation][pair] = None
    found = {relation: edge_sources(relation, list(pairs)) for relation, pairs in wanted.items() if pairs}
    answer: list[tuple[str, ...] | None] = []
    for walk in walks:
        sources = [found[relation].get(pair) for relation, pair in _edges(metapath, walk)]
        true = [source for source in sources if source is not None]
        simple = len(set(zip(labels, walk, strict=True))) == len(labels)
        answer.append(tuple(true) if simple and len(true) == len(sources) else None)
    return answer


def _edges(metapath: Metapath, walk: Sequence[str]) -> Iterator[tuple[Relation, Pair]]:
    for step, left, right in zip(metapath.steps, walk, walk[1:], strict=False):
        yield step.relation, (left, right) if step.forward else (right, left)
