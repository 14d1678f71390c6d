"""``EmbeddedStore``: the graph in one file of this machine, on kglite; the default."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import kglite

from kg import cypher, schema
from kg.errors import StoreError
from kg.paths import Metapath
from kg.schema import Relation
from kg.store import Progress, WriteCount
from kg.stores import frames
from kg.stores.walks import Pair, sources_of_walks

if TYPE_CHECKING:
    import polars as pl

# These optimiser passes of kglite 0.21.2 gave wrong counts over two hops and after OPTIONAL MATCH (0.8 % of random
# queries); without them 40,200 queries agreed with brute force. An upgrade is gated by the property test.
_WRONG_PASSES: Final = [
    "fuse_anchored_edge_count",
    "fuse_count_short_circuits",
    "fuse_optional_match_aggregate",
    "fuse_chain_path_count",
    "fuse_match_return_aggregate",
    "fuse_match_with_aggregate",
    "fuse_match_with_aggregate_top_k",
    "fuse_node_scan_aggregate",
]
_BATCH_ROWS: Final = 10_000
# kglite refuses a query that materialises more than 10 million rows; start nodes are asked for in groups.
_MATCH_STARTS: Final = 500
_FILE: Final = "graph.kgl"


class EmbeddedStore:
    """One process writes at a time. Every write is on disk (log, fsync) when its call returns.

    The graph is held in memory while it is open and written into its file at ``close``; after a crash the log is
    replayed. Calls from several threads take turns.
    """

    speaks_cypher: ClassVar[bool] = True
    persistent: ClassVar[bool] = True

    def __init__(self, address: str) -> None:
        """Open the graph at ``file:PATH``, or make one; PATH is a folder, or a file that ends in ``.kgl``.

        Raises:
            StoreError: no usable path, a file that is no graph, or one that another process holds.
        """
        self.address: Final = address
        self._lock = threading.RLock()
        self._changed = False
        self._open_graph: Any = _open(address)
        if not self._read("SHOW CONSTRAINTS", {}):
            for label in schema.LABELS:
                self._write(cypher.unique_key(label), {})

    def write_nodes(self, label: str, nodes: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore.write_nodes``."""
        checked = frames.checked_nodes(label, nodes)
        # MERGE alone: CREATE was no faster here (110,000 to 130,000 rows a second with either).
        text = cypher.merge_nodes(label, [name for name in checked.columns if name != "key"])
        added = 0
        for rows in frames.batches(checked, _BATCH_ROWS):
            added += self._write(text, {"rows": rows})["nodes_created"]
            if progress:
                progress(len(rows))
        return WriteCount(added, len(nodes) - added)

    def write_edges(self, relation: Relation, edges: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore.write_edges``; where an end is missing nothing at all is written."""
        checked = frames.checked_edges(relation, edges)
        text = cypher.merge_edges(relation, [name for name in checked.columns if name not in ("head", "tail")])
        added = 0
        with self._lock:
            heads = self._existing(relation.head_label, checked["head"])
            tails = self._existing(relation.tail_label, checked["tail"])
            frames.refuse_missing_ends(relation, checked, heads, tails)
            for rows in frames.batches(checked, _BATCH_ROWS):
                added += self._write(text, {"rows": rows})["relationships_created"]
                if progress:
                    progress(len(rows))
        return WriteCount(added, len(edges) - added)

    def delete_nodes(self, label: str, keys: Sequence[str]) -> int:
        """See ``GraphStore.delete_nodes``."""
        frames.node_columns(label)
        return self._write(cypher.delete_nodes(label), {"keys": sorted(set(keys))})["nodes_deleted"]

    def delete_edges(self, relation: Relation, edges: pl.DataFrame) -> int:
        """See ``GraphStore.delete_edges``."""
        pairs = frames.checked_pairs(relation, edges)
        text = cypher.delete_edges(relation)
        return sum(
            self._write(text, {"rows": rows})["relationships_deleted"] for rows in frames.batches(pairs, _BATCH_ROWS)
        )

    def nodes(self, label: str) -> pl.DataFrame:
        """See ``GraphStore.nodes``."""
        columns = frames.node_columns(label)
        found = self._read_columns(cypher.read_nodes(label, [name for name in columns if name != "key"]))
        return frames.read_frame(found, columns)

    def edges(self, relation: Relation) -> pl.DataFrame:
        """See ``GraphStore.edges``."""
        columns = frames.edge_columns(relation)
        properties = [name for name in columns if name not in ("head", "tail")]
        found = self._read_columns(cypher.read_edges(relation, properties))
        return frames.read_frame({"head": found.pop("head_key"), "tail": found.pop("tail_key"), **found}, columns)

    def match(self, metapath: Metapath, starts: Sequence[str], ends: Sequence[str]) -> list[tuple[str, ...]]:
        """See ``GraphStore.match``."""
        text = cypher.match_query(metapath)
        ordered, unique_ends = sorted(set(starts)), sorted(set(ends))
        walks: list[tuple[str, ...]] = []
        for first in range(0, len(ordered), _MATCH_STARTS):
            some = ordered[first : first + _MATCH_STARTS]
            found = self._read_columns(text, {"starts": some, "ends": unique_ends})
            walks.extend(zip(*found.values(), strict=True))
        return sorted(walks)

    def holds(self, metapath: Metapath, walks: Sequence[Sequence[str]]) -> list[tuple[str, ...] | None]:
        """See ``GraphStore.holds``."""
        with self._lock:
            return sources_of_walks(metapath, walks, self._edge_sources)

    def run(self, cypher: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See ``GraphStore.run``; a query that writes raises ``StoreError``."""
        with self._lock:
            self._graph.read_only(True)
            try:
                return self._read(cypher, parameters)
            finally:
                self._graph.read_only(False)

    def get_mark(self) -> str | None:
        """See ``GraphStore.get_mark``."""
        rows = self._read(cypher.get_mark(), {})
        return rows[0]["found_mark"] if rows else None

    def set_mark(self, mark: str | None) -> None:
        """See ``GraphStore.set_mark``."""
        if mark is None:
            self._write(cypher.delete_mark(), {})
        else:
            self._write(cypher.set_mark(), {"mark": mark})

    def clear(self) -> None:
        """See ``GraphStore.clear``."""
        with self._lock:
            for label in schema.LABELS:
                self._write(cypher.delete_all_nodes(label), {})
            self._write(cypher.delete_mark(), {})

    def close(self) -> None:
        """See ``GraphStore.close``."""
        with self._lock:
            graph, self._open_graph = self._open_graph, None
            # Only ``close`` of kglite writes the file; a graph that was only read lets go of its lock when dropped.
            if graph is not None and self._changed:
                try:
                    with warnings.catch_warnings():
                        # Of loads that map the file, which nothing here does.
                        warnings.simplefilter("ignore", kglite.MappedFallbackWarning)
                        graph.close()
                except (kglite.KgError, OSError) as error:
                    self._open_graph = graph
                    raise StoreError(f"store {self.address!r} could not be written into its file: {error}") from error

    @property
    def _graph(self) -> Any:
        if self._open_graph is None:
            raise StoreError(f"the store {self.address!r} is closed; open it again with open_store({self.address!r})")
        return self._open_graph

    def _existing(self, label: str, keys: pl.Series) -> list[str]:
        found: list[str] = self._read_columns(cypher.existing_keys(label), {"keys": keys.unique().to_list()})[
            "found_key"
        ]
        return found

    def _edge_sources(self, relation: Relation, pairs: list[Pair]) -> dict[Pair, str]:
        text = cypher.edge_sources(relation)
        sources: dict[Pair, str] = {}
        for first in range(0, len(pairs), _BATCH_ROWS):
            rows = [{"head": head, "tail": tail} for head, tail in pairs[first : first + _BATCH_ROWS]]
            found = self._read_columns(text, {"rows": rows})
            sources |= zip(zip(found["head_key"], found["tail_key"], strict=True), found["edge_source"], strict=True)
        return sources

    def _write(self, text: str, parameters: Mapping[str, Any]) -> dict[str, int]:
        self._changed = True
        counts: dict[str, int] = self._ask(text, parameters).stats
        return counts

    def _read(self, text: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._ask(text, parameters).to_list()
        return rows

    def _read_columns(self, text: str, parameters: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
        found = self._ask(text, parameters or {})
        return {name: found.column(name) for name in found.columns}

    def _ask(self, text: str, parameters: Mapping[str, Any]) -> Any:
        with self._lock:
            try:
                # timeout_ms=0: none. The default of three minutes would cut a large load or read short.
                return self._graph.cypher(text, params=dict(parameters), disabled_passes=_WRONG_PASSES, timeout_ms=0)
            except (kglite.KgError, OSError, ValueError, RuntimeError) as error:
                raise StoreError(f"store {self.address!r} refused a query: {error}") from error


def _open(address: str) -> Any:
    path = Path(address.partition(":")[2])
    if not path.name:
        raise StoreError(f"store address {address!r} names no path; expected 'file:PATH', as in 'file:shop.graph'")
    file = path if path.suffix == ".kgl" else path / _FILE
    # kglite announces "no such label yet" on stderr; an empty label is nothing unusual here. Process-wide, by design
    # of kglite.
    kglite.set_query_warning_policy("silent")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return kglite.open(str(file), durable="full")
    except kglite.WriterLeaseHeldError as error:
        holder = error.holder or {}
        who = "this process" if holder.get("self") else f"the process {holder.get('pid')}"
        raise StoreError(
            f"store {address!r} is open in {who} since {holder.get('since')}; one process opens an embedded store at a "
            "time. Close it there (or end that process), or keep the graph in Neo4j"
        ) from error
    except (kglite.KgError, OSError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"store {address!r} cannot be opened: {error}. Give a folder that can be written, or rebuild the graph "
            "from its shop folder with 'firstshelf ingest' into a new workspace"
        ) from error
