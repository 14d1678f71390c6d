"""``Neo4jStore``: the graph in a Neo4j 5 server, over the official driver."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import neo4j
from neo4j import exceptions

from kg import cypher, schema
from kg.errors import StoreError
from kg.paths import Metapath
from kg.schema import Relation
from kg.store import Progress, WriteCount
from kg.stores import frames
from kg.stores.walks import Pair, sources_of_walks

if TYPE_CHECKING:
    import polars as pl

OLDEST_VERSION: Final = 5
_BATCH_ROWS: Final = 10_000
# Below this many rows a look whether the relation is empty costs more than CREATE saves over MERGE.
_CREATE_ROWS: Final = 1_000
_CONNECT_TIMEOUT_S: Final = 5.0
_RETRY_TIMEOUT_S: Final = 8.0


# Where a program sets up no logging, Python prints a library's warnings; what the driver has to say reaches the user as
# a StoreError. Its notifications ("no such relationship type yet") tell of nothing unusual: an empty relation.
logging.getLogger("neo4j").addHandler(logging.NullHandler())
logging.getLogger("neo4j.notifications").setLevel(logging.ERROR)


class Neo4jStore:
    """A graph that other programs may read and write too. Values are sent in batches, each its own transaction.

    The login comes from ``NEO4J_USERNAME`` (default neo4j) and ``NEO4J_PASSWORD``, the database from
    ``NEO4J_DATABASE`` (default neo4j). Threads may share a store.
    """

    speaks_cypher: ClassVar[bool] = True
    persistent: ClassVar[bool] = True

    def __init__(self, address: str) -> None:
        """Connect, log in and check the version.

        Raises:
            StoreError: the server is down, refuses the login, has no such database, or is older than Neo4j 5.
        """
        self.address: Final = address
        self._database: Final = os.environ.get("NEO4J_DATABASE") or "neo4j"
        self._has_constraints = False
        self._open_driver: neo4j.Driver | None = None
        try:
            self._open_driver = neo4j.GraphDatabase.driver(
                address,
                auth=_login(),
                connection_timeout=_CONNECT_TIMEOUT_S,
                connection_acquisition_timeout=_RETRY_TIMEOUT_S,
                max_transaction_retry_time=_RETRY_TIMEOUT_S,
                keep_alive=True,
            )
            with self._session("READ") as session:
                agent = session.run(cypher.ping()).consume().server.agent
            check_version(agent, address)
        except (exceptions.ConfigurationError, ValueError) as error:  # ValueError: a port that is no number
            self.close()
            raise StoreError(f"store address {address!r} is malformed ({error}); expected neo4j://HOST:7687") from error
        except StoreError:
            self.close()
            raise

    def write_nodes(self, label: str, nodes: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore.write_nodes``."""
        checked = frames.checked_nodes(label, nodes)
        properties = [name for name in checked.columns if name != "key"]
        with self._session("WRITE") as session:
            is_new = len(checked) >= _CREATE_ROWS and not session.execute_read(_values, cypher.any_node(label), {})
            text = cypher.create_nodes(label, properties) if is_new else cypher.merge_nodes(label, properties)
            added = 0
            for rows in frames.batches(checked, _BATCH_ROWS):
                added += session.execute_write(_write, text, rows).nodes_created
                if progress:
                    progress(len(rows))
        return WriteCount(added, len(nodes) - added)

    def write_edges(self, relation: Relation, edges: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore.write_edges``; where an end is missing nothing is written.

        (Only an end that another program deletes *during* the call can leave earlier batches written.)
        """
        checked = frames.checked_edges(relation, edges)
        properties = [name for name in checked.columns if name not in ("head", "tail")]
        with self._session("WRITE") as session:
            is_new = len(checked) >= _CREATE_ROWS and not session.execute_read(_values, cypher.any_edge(relation), {})
            text = cypher.create_edges(relation, properties) if is_new else cypher.merge_edges(relation, properties)
            if len(checked) > _BATCH_ROWS:  # a single batch is rolled back as one
                _refuse_missing_ends(session, relation, checked)
            added = 0
            for rows in frames.batches(checked, _BATCH_ROWS):
                try:
                    added += session.execute_write(_write, text, rows).relationships_created
                except _FewerWrittenError as error:
                    _refuse_missing_ends(session, relation, checked)
                    raise StoreError(
                        f"edges {relation.type}: {error} rows of a batch found both ends, and the ends are there now; "
                        "another program writes this database at the same time. Write them again"
                    ) from None
                if progress:
                    progress(len(rows))
        return WriteCount(added, len(edges) - added)

    def delete_nodes(self, label: str, keys: Sequence[str]) -> int:
        """See ``GraphStore.delete_nodes``."""
        frames.node_columns(label)
        unique = sorted(set(keys))
        text = cypher.delete_nodes(label)
        with self._session("WRITE") as session:
            return sum(
                session.execute_write(_change, text, {"keys": unique[first : first + _BATCH_ROWS]}).nodes_deleted
                for first in range(0, len(unique), _BATCH_ROWS)
            )

    def delete_edges(self, relation: Relation, edges: pl.DataFrame) -> int:
        """See ``GraphStore.delete_edges``."""
        pairs = frames.checked_pairs(relation, edges)
        text = cypher.delete_edges(relation)
        with self._session("WRITE") as session:
            return sum(
                session.execute_write(_change, text, {"rows": rows}).relationships_deleted
                for rows in frames.batches(pairs, _BATCH_ROWS)
            )

    def nodes(self, label: str) -> pl.DataFrame:
        """See ``GraphStore.nodes``."""
        columns = frames.node_columns(label)
        return self._frame(cypher.read_nodes(label, [name for name in columns if name != "key"]), columns)

    def edges(self, relation: Relation) -> pl.DataFrame:
        """See ``GraphStore.edges``."""
        columns = frames.edge_columns(relation)
        properties = [name for name in columns if name not in ("head", "tail")]
        return self._frame(cypher.read_edges(relation, properties), columns)

    def match(self, metapath: Metapath, starts: Sequence[str], ends: Sequence[str]) -> list[tuple[str, ...]]:
        """See ``GraphStore.match``."""
        parameters = {"starts": sorted(set(starts)), "ends": sorted(set(ends))}
        return sorted(tuple(row) for row in self._read(cypher.match_query(metapath), parameters))

    def holds(self, metapath: Metapath, walks: Sequence[Sequence[str]]) -> list[tuple[str, ...] | None]:
        """See ``GraphStore.holds``."""
        with self._session("READ") as session:
            return session.execute_read(
                lambda tx: sources_of_walks(metapath, walks, lambda relation, pairs: _edge_sources(tx, relation, pairs))
            )

    def run(self, cypher: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See ``GraphStore.run``; a query that writes raises ``StoreError``."""
        with self._session("READ") as session:
            rows: list[dict[str, Any]] = session.execute_read(lambda tx: tx.run(cypher, dict(parameters)).data())
            return rows

    def get_mark(self) -> str | None:
        """See ``GraphStore.get_mark``."""
        rows = self._read(cypher.get_mark(), {})
        return rows[0][0] if rows else None

    def set_mark(self, mark: str | None) -> None:
        """See ``GraphStore.set_mark``."""
        with self._session("WRITE") as session:
            if mark is None:
                session.execute_write(_change, cypher.delete_mark(), {})
            else:
                session.execute_write(_change, cypher.set_mark(), {"mark": mark})

    def clear(self) -> None:
        """See ``GraphStore.clear``; takes firstshelf's labels, nothing else that the database may hold."""
        with self._session("WRITE") as session:
            # Edges first, some at a time: one transaction that detaches every hub would not fit into memory.
            texts = [cypher.delete_some_edges(relation) for relation in schema.RELATIONS]
            texts += [cypher.delete_some_nodes(label) for label in schema.LABELS]
            for text in texts:
                gone = _BATCH_ROWS
                while gone >= _BATCH_ROWS:
                    counters = session.execute_write(_change, text, {"limit": _BATCH_ROWS})
                    gone = max(counters.relationships_deleted, counters.nodes_deleted)
            session.execute_write(_change, cypher.delete_mark(), {})

    def close(self) -> None:
        """See ``GraphStore.close``."""
        driver, self._open_driver = self._open_driver, None
        if driver is not None:
            driver.close()

    def _frame(self, text: str, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
        values: Sequence[Sequence[Any]] = list(zip(*self._read(text, {}), strict=True)) or [()] * len(columns)
        return frames.read_frame(dict(zip(columns, values, strict=True)), columns)

    def _read(self, text: str, parameters: Mapping[str, Any]) -> list[list[Any]]:
        with self._session("READ") as session:
            return session.execute_read(_values, text, parameters)

    @contextmanager
    def _session(self, access: str) -> Iterator[neo4j.Session]:
        if self._open_driver is None:
            raise StoreError(f"the store {self.address!r} is closed; open it again with open_store({self.address!r})")
        with (
            self._errors(),
            self._open_driver.session(
                database=self._database, default_access_mode=access, fetch_size=_BATCH_ROWS
            ) as session,
        ):
            if access == "WRITE" and not self._has_constraints:
                for label in schema.LABELS:
                    session.run(cypher.unique_key(label)).consume()
                session.run(cypher.await_indexes()).consume()
                self._has_constraints = True
            yield session

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.Neo4jError, exceptions.DriverError, OSError) as error:
            raise clear_error(error, self.address, self._database) from error


class _FewerWrittenError(Exception):
    """Fewer rows were written than sent; raised inside the transaction, so that it is rolled back."""


def _write(tx: neo4j.ManagedTransaction, text: str, rows: list[dict[str, Any]]) -> neo4j.SummaryCounters:
    result = tx.run(text, rows=rows)
    written = result.single(strict=True)["written"]
    if written != len(rows):
        raise _FewerWrittenError(f"{written} of {len(rows)}")
    return result.consume().counters


def _change(tx: neo4j.ManagedTransaction, text: str, parameters: dict[str, Any]) -> neo4j.SummaryCounters:
    return tx.run(text, parameters).consume().counters


def _values(tx: neo4j.ManagedTransaction, text: str, parameters: Mapping[str, Any]) -> list[list[Any]]:
    return tx.run(text, dict(parameters)).values()


def _edge_sources(tx: neo4j.ManagedTransaction, relation: Relation, pairs: list[Pair]) -> dict[Pair, str]:
    text = cypher.edge_sources(relation)
    sources: dict[Pair, str] = {}
    for first in range(0, len(pairs), _BATCH_ROWS):
        rows = [{"head": head, "tail": tail} for head, tail in pairs[first : first + _BATCH_ROWS]]
        sources.update({(head, tail): source for head, tail, source in _values(tx, text, {"rows": rows})})
    return sources


def _refuse_missing_ends(session: neo4j.Session, relation: Relation, edges: pl.DataFrame) -> None:
    found = [
        [
            key
            for keys in edges[end].unique().to_frame().iter_slices(_BATCH_ROWS)
            for (key,) in session.execute_read(_values, cypher.existing_keys(label), {"keys": keys[end].to_list()})
        ]
        for end, label in (("head", relation.head_label), ("tail", relation.tail_label))
    ]
    frames.refuse_missing_ends(relation, edges, *found)


def check_version(agent: str, address: str) -> None:
    """Raise ``StoreError`` unless a server's agent ("Neo4j/5.26.30", "Neo4j/2025.06.0") is Neo4j 5 or newer."""
    found = re.match(r"Neo4j/(\d+)\.", agent)
    if found is None or int(found[1]) < OLDEST_VERSION:
        raise StoreError(
            f"the server at {address!r} is {agent!r}; firstshelf needs Neo4j {OLDEST_VERSION} or newer. Upgrade it, or "
            "keep the graph in the embedded store (file:PATH)"
        )


def _login() -> tuple[str, str] | None:
    password = os.environ.get("NEO4J_PASSWORD")
    return (os.environ.get("NEO4J_USERNAME") or "neo4j", password) if password else None


def clear_error(error: Exception, address: str, database: str) -> StoreError:
    """What went wrong in the driver or the server, in one line with a way out; never a password."""
    code = getattr(error, "code", None) or ""
    if isinstance(error, exceptions.AuthError) or code.startswith("Neo.ClientError.Security"):
        return StoreError(
            f"Neo4j at {address!r} refuses the login ({code or type(error).__name__}); set NEO4J_USERNAME and "
            "NEO4J_PASSWORD to a user of that server"
        )
    if code == "Neo.ClientError.Database.DatabaseNotFound":
        return StoreError(f"Neo4j at {address!r} has no database {database!r}; set NEO4J_DATABASE to one that it has")
    if isinstance(error, exceptions.UnsupportedServerProduct):
        return StoreError(
            f"the server at {address!r} is no Neo4j {OLDEST_VERSION} or newer ({_first_line(error)}); upgrade it, or "
            "keep the graph in the embedded store (file:PATH)"
        )
    if isinstance(error, exceptions.ServiceUnavailable | exceptions.SessionExpired | OSError):
        return StoreError(
            f"no Neo4j answers at {address!r} ({_first_line(error)}); start it, or correct the address "
            "(neo4j://HOST:7687; 7474 is its web page, not its Bolt port)"
        )
    if isinstance(error, exceptions.Neo4jError):
        return StoreError(f"store {address!r} refused a query: {_first_line(error)}")
    return StoreError(f"store {address!r} cannot be used: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(":")
