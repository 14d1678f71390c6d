"""``launch_item``: one product into a loaded graph, by the same rules and the same tables as a whole catalogue."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from ingest.canonical import launches_file
from ingest.facts import item_facts
from ingest.rows import validate_item
from kg import schema

if TYPE_CHECKING:
    from pathlib import Path

    from kg.schema import Relation
    from kg.store import GraphStore
    from kg.workspace import Workspace


def launch_item(
    item: Mapping[str, Any],
    workspace: Workspace,
    store: GraphStore,
    *,
    known: Mapping[str, Container[str]] | None = None,
) -> tuple[dict[str, pl.DataFrame], dict[Relation, pl.DataFrame]]:
    """Put one product into the graph and keep it in the workspace, where the next load takes it up.

    Shared nodes (brands, categories, attributes) that the graph has stay as they are. A product that is there already
    is updated, and the edges that it no longer has go away; its interactions stay.

    Args:
        item: the fields of an items row; only ``item_id`` is required.
        workspace: keeps the item in ``data/launches.jsonl``.
        store: the workspace's graph store, open.
        known: keys per label that the graph holds (the vocabularies of a snapshot, say); read from the store if absent.

    Returns:
        The node tables and edge tables that were written, per label and per relation.

    Raises:
        SourceError: the item is not valid; the message names the field.
        StoreError: the store failed; launch the same item again.
    """
    valid = validate_item(item)
    if known is None:
        known = {label: set(store.nodes(label)["key"]) for label in schema.LABELS if label != schema.CUSTOMER}
    facts = item_facts([valid])
    is_new = valid.item_id not in known.get(schema.PRODUCT, ())
    shared = {label: keys for label, keys in known.items() if label != schema.PRODUCT}
    new = facts.without_known(shared)
    edges = dict(new.edges)
    # The chain above a category that the graph has is there too, and a taxonomy may have said more about it.
    upward = edges[schema.SUBCATEGORY_OF]
    edges[schema.SUBCATEGORY_OF] = upward.filter(pl.col("head").is_in(new.nodes[schema.CATEGORY]["key"].implode()))
    launches = launches_file(workspace)
    launches.parent.mkdir(parents=True, exist_ok=True)
    _append(launches, valid.model_dump_json())
    if not is_new:
        _delete_outdated(store, valid.item_id, edges)
    for label, table in new.nodes.items():
        if table.height:
            store.write_nodes(label, table)
    for relation, table in edges.items():
        if table.height:
            store.write_edges(relation, table)
    return dict(new.nodes), edges


def launched_item(workspace: Workspace, item_id: str) -> dict[str, Any] | None:
    """The fields with which an item was launched last since the last load; ``None`` where it was not."""
    launches = launches_file(workspace)
    if not launches.exists():
        return None
    for line in reversed(launches.read_text(encoding="utf-8").splitlines(keepends=True)):
        if line.endswith("\n") and (item := json.loads(line))["item_id"] == item_id:
            found: dict[str, Any] = item
            return found
    return None


def _append(file: Path, line: str) -> None:
    """Put a line on disk; half a line at the end, of a launch that was cut off, is taken away first."""
    with file.open("a+b") as stream:
        stream.seek(max(0, stream.tell() - 1))
        if stream.read(1) not in (b"", b"\n"):
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def _delete_outdated(store: GraphStore, item_id: str, edges: Mapping[Relation, pl.DataFrame]) -> None:
    for relation, table in edges.items():
        if relation.head_label != schema.PRODUCT:
            continue
        stored = store.edges(relation).filter((pl.col("head") == item_id) & (pl.col("source") == "catalogue"))
        outdated = stored.join(table, on=["head", "tail"], how="anti")
        if outdated.height:
            store.delete_edges(relation, outdated)
