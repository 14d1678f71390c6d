"""``GraphStore``: what firstshelf asks of a graph database, and ``open_store`` that picks one by its address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from kg.errors import StoreError
from kg.paths import Metapath
from kg.schema import Relation

if TYPE_CHECKING:
    import polars as pl

Progress = Callable[[int], None]
"""Called with the number of rows just written."""


@dataclass(frozen=True, slots=True)
class WriteCount:
    """What a write changed: rows that were new, and rows that were there."""

    added: int = 0
    updated: int = 0

    def __add__(self, other: WriteCount) -> WriteCount:
        return WriteCount(self.added + other.added, self.updated + other.updated)


class GraphStore(Protocol):
    """A property graph with the fixed schema of ``kg.schema``. The memory store is the meaning of this protocol."""

    speaks_cypher: ClassVar[bool]
    """Whether ``run`` takes Cypher text."""
    persistent: ClassVar[bool]
    """Whether another process finds the graph again at ``address``."""

    @property
    def address(self) -> str:
        """The address as given to ``open_store``, without credentials."""

    def write_nodes(self, label: str, nodes: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """Upsert by ``key`` (column ``key``, other columns are properties of the schema). A null removes a property.

        Properties without a column stay as they are. Rows count as written in order: of two with one key the last
        wins. A column outside the schema raises ``ValueError``; a missing key or a NaN ``StoreError``.
        """

    def write_edges(self, relation: Relation, edges: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """Upsert by (``head``, ``tail``), else as ``write_nodes``. Every row has its ``source``.

        An edge whose end does not exist raises ``StoreError`` with an example, and nothing of the call is written.
        """

    def delete_nodes(self, label: str, keys: Sequence[str]) -> int:
        """Delete nodes and their edges; absent keys are ignored. Returns how many nodes went."""

    def delete_edges(self, relation: Relation, edges: pl.DataFrame) -> int:
        """Delete by (``head``, ``tail``); absent edges are ignored. Returns how many went."""

    def nodes(self, label: str) -> pl.DataFrame:
        """All nodes of a label: ``key`` and every property of the schema, typed, sorted by ``key``."""

    def edges(self, relation: Relation) -> pl.DataFrame:
        """All edges of a relation: ``head``, ``tail`` and every property of the schema, sorted by (head, tail)."""

    def match(self, metapath: Metapath, starts: Sequence[str], ends: Sequence[str]) -> list[tuple[str, ...]]:
        """Node keys of every walk of the metapath between the given starts and ends, sorted, without duplicates.

        No node comes twice in a walk: all its products differ from each other, and so do all categories.
        """

    def holds(self, metapath: Metapath, walks: Sequence[Sequence[str]]) -> list[tuple[str, ...] | None]:
        """For each walk (node keys): the ``source`` of each of its edges where every edge exists, else ``None``.

        A walk that visits a node twice is ``None`` too. One with another number of nodes raises ``ValueError``.
        """

    def run(self, cypher: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run a reading Cypher query. Raises ``StoreError`` where ``speaks_cypher`` is false."""

    def get_mark(self) -> str | None:
        """The content hash of the last load that was finished, or ``None`` (never loaded, or a load was cut off)."""

    def set_mark(self, mark: str | None) -> None:
        """Set or, with ``None``, take away the mark."""

    def clear(self) -> None:
        """Delete everything, the mark included."""

    def close(self) -> None:
        """Flush and release. Using a closed store raises ``StoreError``."""


_NEO4J_KINDS: Final = ("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc")


def check_address(address: str) -> str:
    """The kind of store that an address names ("memory", "file", "neo4j", …), before anything is opened or kept.

    Raises:
        StoreError: unknown kind, or credentials in the address (which would end in files and messages).
    """
    kind, _, rest = address.partition(":")
    host = rest.removeprefix("//").partition("/")[0]
    if rest.startswith("//") and "@" in host:
        raise StoreError(
            f"store address {kind + '://…@' + host.rpartition('@')[2]!r} holds a login; leave it out of the address "
            "and set NEO4J_USERNAME and NEO4J_PASSWORD"
        )
    if kind not in ("memory", "file", *_NEO4J_KINDS):
        raise StoreError(
            f"store address {address!r} is of no known kind; "
            "expected 'memory:', 'file:PATH', 'neo4j://HOST:PORT' or 'bolt://HOST:PORT'"
        )
    return kind


def open_store(address: str) -> GraphStore:
    """Open the store that an address names: ``memory:``, ``file:PATH`` (embedded), ``neo4j://…`` or ``bolt://…``.

    Neo4j's credentials come from ``NEO4J_USERNAME``, ``NEO4J_PASSWORD`` and ``NEO4J_DATABASE``.

    Raises:
        StoreError: unknown kind of address, missing extra, server down, login refused, wrong version, file held by
            another process.
    """
    kind = check_address(address)
    if kind == "memory":
        from kg.stores.memory import MemoryStore

        return MemoryStore()
    if kind == "file":
        from kg.stores.process import ProcessStore

        return ProcessStore(address)
    try:
        from kg.stores.neo4j import Neo4jStore
    except ModuleNotFoundError as error:
        raise StoreError(
            f"store {address!r} needs the package {error.name!r}; install it with: pip install 'firstshelf[neo4j]'"
        ) from error
    return Neo4jStore(address)
