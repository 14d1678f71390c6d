"""``MemoryStore``: the meaning of ``GraphStore``, on networkx; the other stores are tested against it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kg.errors import StoreError
from kg.paths import Metapath, Step
from kg.schema import Relation
from kg.store import Progress, WriteCount
from kg.stores import frames

if TYPE_CHECKING:
    import networkx as nx
    import polars as pl

_Node = tuple[str, str]
"""(label, key)"""


class MemoryStore:
    """A graph in this process's memory, gone when it ends. For tests, notebooks and small demos."""

    speaks_cypher: ClassVar[bool] = False
    persistent: ClassVar[bool] = False

    address: Final = "memory:"

    def __init__(self) -> None:
        import networkx as nx

        self._open_graph: nx.MultiDiGraph[_Node] | None = nx.MultiDiGraph()
        self._lock = threading.RLock()

    def write_nodes(self, label: str, nodes: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore.write_nodes``."""
        added = 0
        with self._lock:
            for row in frames.checked_nodes(label, nodes).to_dicts():
                node = (label, row.pop("key"))
                added += node not in self._graph
                self._graph.add_node(node)
                _set(self._graph.nodes[node], row)
        if progress:
            progress(len(nodes))
        return WriteCount(added, len(nodes) - added)

    def write_edges(self, relation: Relation, edges: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore.write_edges``."""
        checked = frames.checked_edges(relation, edges)
        added = 0
        with self._lock:
            heads, tails = set(self._keys(relation.head_label)), set(self._keys(relation.tail_label))
            frames.refuse_missing_ends(relation, checked, heads, tails)
            for row in checked.to_dicts():
                head, tail = (relation.head_label, row.pop("head")), (relation.tail_label, row.pop("tail"))
                added += not self._graph.has_edge(head, tail, relation.type)
                self._graph.add_edge(head, tail, relation.type)
                _set(self._graph.edges[head, tail, relation.type], row)
        if progress:
            progress(len(edges))
        return WriteCount(added, len(edges) - added)

    def delete_nodes(self, label: str, keys: Sequence[str]) -> int:
        """See ``GraphStore.delete_nodes``."""
        frames.node_columns(label)
        with self._lock:
            there = {(label, key) for key in keys if (label, key) in self._graph}
            self._graph.remove_nodes_from(there)
        return len(there)

    def delete_edges(self, relation: Relation, edges: pl.DataFrame) -> int:
        """See ``GraphStore.delete_edges``."""
        gone = 0
        with self._lock:
            for head_key, tail_key in frames.checked_pairs(relation, edges).iter_rows():
                head, tail = (relation.head_label, head_key), (relation.tail_label, tail_key)
                if self._graph.has_edge(head, tail, relation.type):
                    self._graph.remove_edge(head, tail, relation.type)
                    gone += 1
        return gone

    def nodes(self, label: str) -> pl.DataFrame:
        """See ``GraphStore.nodes``."""
        columns = frames.node_columns(label)
        with self._lock:
            rows = [{"key": key, **self._graph.nodes[label, key]} for key in self._keys(label)]
        return frames.read_frame({name: [row.get(name) for row in rows] for name in columns}, columns)

    def edges(self, relation: Relation) -> pl.DataFrame:
        """See ``GraphStore.edges``."""
        columns = frames.edge_columns(relation)
        with self._lock:
            rows = [
                {"head": head[1], "tail": tail[1], **properties}
                for head, tail, kind, properties in self._graph.edges(keys=True, data=True)
                if (head[0], kind, tail[0]) == (relation.head_label, relation.type, relation.tail_label)
            ]
        return frames.read_frame({name: [row.get(name) for row in rows] for name in columns}, columns)

    def match(self, metapath: Metapath, starts: Sequence[str], ends: Sequence[str]) -> list[tuple[str, ...]]:
        """See ``GraphStore.match``."""
        labels = metapath.labels
        with self._lock:
            # Backward first: nodes from which an end can be reached, so that the walk forward never strays.
            reaching: list[set[_Node]] = [{(labels[-1], key) for key in ends}]
            for step in reversed(metapath.steps):
                back = Step(step.relation, not step.forward)
                reaching.append({node for end in reaching[-1] for node in self._next(end, back)})
            reaching.reverse()
            walks: list[tuple[_Node, ...]] = [
                (node,) for node in sorted({(labels[0], key) for key in starts}) if node in reaching[0]
            ]
            for step, allowed in zip(metapath.steps, reaching[1:], strict=True):
                walks = [
                    (*walk, node)
                    for walk in walks
                    for node in self._next(walk[-1], step)
                    if node in allowed and node not in walk
                ]
        return sorted(tuple(key for _, key in walk) for walk in walks)

    def holds(self, metapath: Metapath, walks: Sequence[Sequence[str]]) -> list[tuple[str, ...] | None]:
        """See ``GraphStore.holds``."""
        with self._lock:
            return [self._sources(metapath, walk) for walk in walks]

    def run(self, cypher: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Raise ``StoreError``: this store has no query language."""
        raise StoreError(
            "the store 'memory:' does not speak Cypher; open an embedded store (file:PATH) or Neo4j to run a query"
        )

    def get_mark(self) -> str | None:
        """See ``GraphStore.get_mark``."""
        with self._lock:
            mark: str | None = self._graph.graph.get("mark")
            return mark

    def set_mark(self, mark: str | None) -> None:
        """See ``GraphStore.set_mark``."""
        with self._lock:
            self._graph.graph["mark"] = mark

    def clear(self) -> None:
        """See ``GraphStore.clear``."""
        with self._lock:
            self._graph.clear()

    def close(self) -> None:
        """See ``GraphStore.close``."""
        with self._lock:
            self._open_graph = None

    @property
    def _graph(self) -> nx.MultiDiGraph[_Node]:
        if self._open_graph is None:
            raise StoreError("the store 'memory:' is closed; open it again with open_store('memory:')")
        return self._open_graph

    def _keys(self, label: str) -> Iterator[str]:
        return (key for found, key in self._graph if found == label)

    def _next(self, node: _Node, step: Step) -> Iterator[_Node]:
        if node not in self._graph:
            return
        neighbours = self._graph.succ[node] if step.forward else self._graph.pred[node]
        for neighbour, kinds in neighbours.items():
            if neighbour[0] == step.target and step.relation.type in kinds:
                yield neighbour

    def _sources(self, metapath: Metapath, walk: Sequence[str]) -> tuple[str, ...] | None:
        if len(walk) != len(metapath.labels):
            raise ValueError(
                f"walk {tuple(walk)!r} has {len(walk)} nodes; metapath {metapath.name!r} has {len(metapath.labels)}"
            )
        nodes = list(zip(metapath.labels, walk, strict=True))
        if len(set(nodes)) < len(nodes):
            return None
        sources = []
        for step, left, right in zip(metapath.steps, nodes, nodes[1:], strict=False):
            head, tail = (left, right) if step.forward else (right, left)
            if not self._graph.has_edge(head, tail, step.relation.type):
                return None
            sources.append(self._graph.edges[head, tail, step.relation.type]["source"])
        return tuple(sources)


def _set(properties: dict[str, Any], row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if value is None:
            properties.pop(name, None)
        else:
            properties[name] = value
