"""Metapaths (templates of a walk) and the walks that instantiate them.

A metapath is a fixed sequence of steps through the schema. It ends at a recommended ``Product`` and starts at the
``Customer``, or at a history ``Product`` where a history came with the request. Fixed hops keep the queries fast and
make the three stores comparable row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kg import schema
from kg.schema import Relation


@dataclass(frozen=True, slots=True)
class Step:
    """One hop; ``forward`` says whether the walk goes from the relation's head to its tail."""

    relation: Relation
    forward: bool

    @property
    def origin(self) -> str:
        """Label that the hop leaves."""
        return self.relation.head_label if self.forward else self.relation.tail_label

    @property
    def target(self) -> str:
        """Label that the hop reaches."""
        return self.relation.tail_label if self.forward else self.relation.head_label


@dataclass(frozen=True, slots=True)
class Metapath:
    """A named template; consecutive steps fit together. ``labels`` has one entry more than ``steps``."""

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for left, right in zip(self.steps, self.steps[1:], strict=False):
            if left.target != right.origin:
                raise ValueError(
                    f"metapath {self.name!r}: step to {left.target} is followed by a step from {right.origin}"
                )

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of each node of the walk, first to last."""
        return (self.steps[0].origin, *(step.target for step in self.steps))

    def from_history(self) -> Metapath:
        """The same walk without its first step: it starts at the history item."""
        return Metapath(self.name, self.steps[1:])


def _there(relation: Relation) -> Step:
    return Step(relation, forward=True)


def _back(relation: Relation) -> Step:
    return Step(relation, forward=False)


def _via(relation: Relation) -> tuple[Step, Step]:
    return _there(relation), _back(relation)


_BOUGHT = _there(schema.INTERACTED)
_TOGETHER = _there(schema.BOUGHT_WITH)
_SIBLING = (
    _there(schema.IN_CATEGORY),
    *_via(schema.SUBCATEGORY_OF),
    _back(schema.IN_CATEGORY),
)

METAPATHS: Final[tuple[Metapath, ...]] = (
    Metapath("similar_text", (_BOUGHT, _back(schema.SIMILAR_TO))),
    Metapath("bought_with", (_BOUGHT, _TOGETHER)),
    Metapath("same_brand", (_BOUGHT, *_via(schema.MADE_BY))),
    Metapath("same_category", (_BOUGHT, *_via(schema.IN_CATEGORY))),
    Metapath("shared_attribute", (_BOUGHT, *_via(schema.HAS_ATTRIBUTE))),
    Metapath("sibling_category", (_BOUGHT, *_SIBLING)),
    Metapath("bought_with_similar_text", (_BOUGHT, _TOGETHER, _back(schema.SIMILAR_TO))),
    Metapath("bought_with_same_brand", (_BOUGHT, _TOGETHER, *_via(schema.MADE_BY))),
    Metapath("bought_with_same_category", (_BOUGHT, _TOGETHER, *_via(schema.IN_CATEGORY))),
    Metapath("bought_with_shared_attribute", (_BOUGHT, _TOGETHER, *_via(schema.HAS_ATTRIBUTE))),
)
"""Every kind of reason that an explanation can give, from the most direct to the least.

A new product is the *head* of its SIMILAR_TO edges (it points at older products), so walks take them backward.
"""


@dataclass(frozen=True, slots=True)
class PathNode:
    """A node as an explanation shows it."""

    label: str
    key: str
    name: str


@dataclass(frozen=True, slots=True)
class PathEdge:
    """An edge of a path; ``forward`` says whether it points from the node before it to the node after it."""

    type: str
    forward: bool
    source: str


@dataclass(frozen=True, slots=True)
class Path:
    """A walk that was found true in a store: ``edges[i]`` joins ``nodes[i]`` and ``nodes[i + 1]``."""

    nodes: tuple[PathNode, ...]
    edges: tuple[PathEdge, ...]
    score: float
    metapath: str
