"""``load``: a shop folder into the canonical data of a workspace and into a graph store, as a difference."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from ingest.canonical import CanonicalData, read_canonical, read_folder, write_canonical
from ingest.facts import (
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    TAXONOMY_COLUMNS,
    GraphTables,
    also_bought,
    interactions,
    item_facts,
    taxonomy_facts,
)
from ingest.files import FileCount, Rejects, Tick, find_files
from ingest.rows import FUTURE_TOLERANCE, say_ignored
from ingest.together import bought_with
from kg import schema
from kg.errors import StoreError
from kg.store import GraphStore, WriteCount

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kg.workspace import Workspace

_MANAGED: Final = ("catalogue", "behaviour", "taxonomy")
"""Sources of edges that a load owns. What a person or training wrote is never changed by a load."""
_LOADED: Final = tuple(relation for relation in schema.RELATIONS if relation != schema.SIMILAR_TO)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did. For every file, and so in all, rows read = accepted + rejected; reasons sum to rejected.

    ``ignored_columns`` holds, for each file with such, the columns that nothing reads, each with the known field that
    it looks like or ``None``: a typo is found there.
    """

    rows_read: int
    rows_accepted: int
    rows_rejected: int
    rejects_file: str | None
    reasons: dict[str, int]
    nodes_added: int
    nodes_updated: int
    nodes_deleted: int
    edges_added: int
    edges_updated: int
    edges_deleted: int
    content_hash: str
    seconds: float
    files: dict[str, FileCount]
    ignored_files: list[str]
    ignored_columns: dict[str, dict[str, str | None]]

    @property
    def notes(self) -> list[str]:
        """What was not read at all, in words."""
        notes = [
            f"{name!r} has columns that nothing reads: {say_ignored(c)}" for name, c in self.ignored_columns.items()
        ]
        if self.ignored_files:
            notes.append(f"files that nothing reads: {', '.join(map(repr, self.ignored_files))}")
        return notes

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**asdict(self), "notes": self.notes}


def load(
    source: str | Path,
    store: GraphStore,
    *,
    workspace: Workspace | None = None,
    mapping: str | Path | Mapping[str, Any] | None = None,
    now: datetime | None = None,
    progress: bool = False,
) -> LoadReport:
    """Read a shop folder, validate and clean it, and bring the graph to what it says. Twice is the same as once.

    The folder's rows are merged with what the workspace holds: items by ``item_id``, events by (user_id, item_id,
    event, timestamp, position), so a later folder adds and corrects and never takes away. The wanted graph is derived
    from the merged data and compared with what the store holds; only the difference is written. A load that was cut
    off is continued by the next one. Without a workspace the folder is all that is known: items and events of earlier
    loads stay in the graph, and nothing but outdated edges of the folder's own products is deleted.

    Bad rows never stop a load: each goes to the rejects file with its place, field, value and reason. Events of unknown
    items are rejects too; ingest the folder again once the item is there, and they are taken.

    Args:
        source: the folder: ``items.*`` and ``events.*`` (jsonl, csv, parquet; .gz too), RDF files, ``mapping.json``.
        store: where the graph goes; with a workspace, the whole store belongs to it.
        workspace: keeps the canonical data and the rejects files.
        mapping: how a folder of another layout is read, instead of its ``mapping.json``.
        now: events more than a day later are refused; the clock by default. Naive means UTC.
        progress: show progress bars on stderr where it is a terminal.

    Raises:
        SourceError: the folder, or a file of it, cannot be read at all. Nothing has been changed then.
        StoreError: the store failed, and the load can be run again and continues; or it holds the graph of another
            workspace.
    """
    started = time.perf_counter()
    folder = find_files(source, mapping)
    now = now or datetime.now(UTC)
    latest = int(((now if now.tzinfo else now.replace(tzinfo=UTC)) + FUTURE_TOLERANCE).timestamp())
    rejects = Rejects(lambda: _rejects_file(folder.path, workspace))
    with _bars(progress) as bars:
        if workspace is None:
            old = _nothing()
            also_known = frozenset(store.nodes(schema.PRODUCT)["key"])
        else:
            old, also_known = read_canonical(workspace), frozenset()
        try:
            data = read_folder(
                folder, old, also_known=also_known, latest=latest, rejects=rejects, start_file=bars.start_file
            )
        finally:
            rejects.close()
        content_hash = data.content_hash()
        _refuse_foreign(store, workspace, content_hash)
        bars.say("deriving the graph")
        wanted = wanted_tables(data)
        store.set_mark(None)
        if workspace is not None:
            write_canonical(workspace, data)
        counts = _write_difference(store, wanted, whole=workspace is not None, bars=bars)
        store.set_mark(content_hash)
        if workspace is not None:
            workspace.remember(content_hash=content_hash, loaded_at=now.astimezone(UTC).isoformat(timespec="seconds"))
    return LoadReport(
        rows_read=sum(count.read for count in rejects.files.values()),
        rows_accepted=sum(count.accepted for count in rejects.files.values()),
        rows_rejected=rejects.reasons.total(),
        rejects_file=None if rejects.path is None else str(rejects.path),
        reasons=dict(sorted(rejects.reasons.items())),
        nodes_added=counts.nodes.added,
        nodes_updated=counts.nodes.updated,
        nodes_deleted=counts.nodes_deleted,
        edges_added=counts.edges.added,
        edges_updated=counts.edges.updated,
        edges_deleted=counts.edges_deleted,
        content_hash=content_hash,
        seconds=round(time.perf_counter() - started, 3),
        files=rejects.files,
        ignored_files=folder.ignored,
        ignored_columns=rejects.ignored_columns,
    )


def _refuse_foreign(store: GraphStore, workspace: Workspace | None, content_hash: str) -> None:
    """A whole load deletes what its workspace does not know: it must not meet the graph of another shop."""
    if workspace is None or workspace.get("content_hash") is not None:
        return
    if store.get_mark() not in {None, content_hash}:
        raise StoreError(
            f"store {store.address!r} holds the graph of another workspace, and loading {str(workspace.path)!r} would "
            "replace it; name another database (NEO4J_DATABASE) or server, or delete every node of this one first"
        )


def wanted_tables(data: CanonicalData) -> GraphTables:
    """The whole graph that canonical data say, but for SIMILAR_TO, which training and launches write."""
    catalogue = item_facts(data.items)
    taxonomy, _ = taxonomy_facts(data.taxonomy, catalogue)
    behaviour = interactions(data.events)
    together = bought_with(behaviour.edges[schema.INTERACTED])
    listed = also_bought(data.items, data.events["item_id"].unique())
    nodes = {**catalogue.nodes, **behaviour.nodes, **listed.nodes}
    edges = {**catalogue.edges, **behaviour.edges, **together.edges, **listed.edges}
    categories = pl.concat([nodes[schema.CATEGORY], taxonomy.nodes[schema.CATEGORY]])
    nodes[schema.CATEGORY] = categories.unique("key", keep="first", maintain_order=True).sort("key")
    upward = pl.concat([edges[schema.SUBCATEGORY_OF], taxonomy.edges[schema.SUBCATEGORY_OF]])
    edges[schema.SUBCATEGORY_OF] = upward.sort("head", "tail")
    return GraphTables(nodes, edges)


def _nothing() -> CanonicalData:
    return CanonicalData(*(pl.DataFrame(schema=columns) for columns in (ITEM_COLUMNS, EVENT_COLUMNS, TAXONOMY_COLUMNS)))


def _rejects_file(source: Path, workspace: Workspace | None) -> Path:
    """One file per source folder, so that loading it again replaces what it said the last time."""
    source = source.resolve()
    readable = re.sub(r"[^\w.-]", "_", source.name)[:60]
    name = f"{readable}-{sha256(os.fsencode(source)).hexdigest()[:8]}.jsonl"
    if workspace is None:
        return Path(tempfile.mkdtemp(prefix="firstshelf-")) / name
    workspace.rejects_folder.mkdir(parents=True, exist_ok=True)
    return workspace.rejects_folder / name


@dataclass(slots=True)
class _Counts:
    nodes: WriteCount = field(default_factory=WriteCount)
    edges: WriteCount = field(default_factory=WriteCount)
    nodes_deleted: int = 0
    edges_deleted: int = 0


def _write_difference(store: GraphStore, wanted: GraphTables, *, whole: bool, bars: _Bars) -> _Counts:
    """Bring the store to the wanted tables. ``whole``: what they do not have is deleted, nodes too."""
    counts = _Counts()
    bars.say("comparing with the store")
    products = wanted.nodes[schema.PRODUCT]["key"]
    changed_nodes, surplus_nodes, changed_edges = {}, {}, {}
    for label in schema.LABELS:
        stored = store.nodes(label)
        changed_nodes[label] = _changed(wanted.nodes[label], stored, ["key"])
        surplus_nodes[label] = stored.join(wanted.nodes[label], on="key", how="anti")["key"]
    for relation in _LOADED:
        stored = store.edges(relation)
        managed = stored.filter(pl.col("source").is_in(_MANAGED))
        foreign = stored.filter(~pl.col("source").is_in(_MANAGED))
        ours = wanted.edges[relation].join(foreign, on=["head", "tail"], how="anti")
        changed_edges[relation] = _changed(ours, managed, ["head", "tail"])
        surplus = managed.join(ours, on=["head", "tail"], how="anti")
        if not whole:
            outdated = relation.head_label == schema.PRODUCT
            surplus = surplus.filter(pl.col("head").is_in(products.implode()) & pl.lit(outdated))
        if surplus.height:
            counts.edges_deleted += store.delete_edges(relation, surplus)
    for label, table in changed_nodes.items():
        if table.height:
            tick = bars.start(f"writing {label}", table.height)
            counts.nodes += store.write_nodes(label, table, progress=tick)
    for relation, table in changed_edges.items():
        if table.height:
            tick = bars.start(f"writing {relation.type}", table.height)
            counts.edges += store.write_edges(relation, table, progress=tick)
    if whole:
        for label, keys in surplus_nodes.items():
            if len(keys):
                counts.nodes_deleted += store.delete_nodes(label, keys.to_list())
    return counts


def _changed(wanted: pl.DataFrame, stored: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Rows of ``wanted`` that ``stored`` does not hold exactly so."""
    return wanted.join(stored.select(wanted.columns), on=wanted.columns, how="anti", nulls_equal=True).sort(keys)


class _Bars:
    """Progress on stderr, one bar a step, or nothing."""

    def __init__(self, shown: Progress | None = None) -> None:
        self._shown = shown
        self._task: TaskID | None = None
        self._rows = 0

    def start(self, what: str, total: int | None) -> Tick:
        """Begin a step and end the one before; the tick takes the number of rows just done."""
        if self._shown is None:
            return lambda _: None
        if self._task is not None:
            if self._rows:
                self._shown.update(self._task, total=self._rows)
                self._shown.stop_task(self._task)
            else:
                self._shown.remove_task(self._task)
        self._task, self._rows = self._shown.add_task(what, total=total), 0
        return self._advance

    def _advance(self, rows: int) -> None:
        if self._shown is not None and self._task is not None:
            self._rows += rows
            self._shown.advance(self._task, rows)

    def say(self, what: str) -> None:
        """A step whose length is not known."""
        self.start(what, None)

    def start_file(self, name: str) -> Tick:
        """Begin to read a file."""
        return self.start(f"reading {name}", None)


@contextmanager
def _bars(progress: bool) -> Iterator[_Bars]:
    if not progress or not sys.stderr.isatty():
        yield _Bars()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield _Bars(shown)
