"""The canonical data of a shop: read from a folder, merged with what a workspace holds, kept as Parquet, hashed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import polars as pl
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ingest.facts import (
    EVENT_COLUMNS,
    EVENT_IDENTITY,
    ITEM_COLUMNS,
    TAXONOMY_COLUMNS,
    item_facts,
    items_frame,
    taxonomy_facts,
)
from ingest.files import Chunk, Place, Rejects, ShopFolder, SourceFile, Tick, read_bytes, read_rows
from ingest.rows import EVENT_FIELDS, ITEM_FIELDS, Event, Item, clean_id, clean_text, default_weight, reason_of
from kg.errors import SourceError, WorkspaceError
from kg.rdf import read_rdf

if TYPE_CHECKING:
    from kg.workspace import Workspace

_ITEMS: Final = TypeAdapter(list[Item])
_EVENTS: Final = TypeAdapter(list[Event])
_HASH_ROWS: Final = 100_000

StartFile = Callable[[str], Tick]
"""Called with a file's name before it is read; gives what is told about its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalData:
    """Clean, valid, without duplicates, in a fixed order. Columns: ``ITEM_``, ``EVENT_``, ``TAXONOMY_COLUMNS``."""

    items: pl.DataFrame
    events: pl.DataFrame
    taxonomy: pl.DataFrame

    def content_hash(self) -> str:
        """16 hex digits of sha256 over all rows; the order of rows in the shop's files does not matter."""
        digest = hashlib.sha256()
        for name, table in (("items", self.items), ("events", self.events), ("taxonomy", self.taxonomy)):
            digest.update(f"{name} {table.height}\n".encode())
            for part in table.iter_slices(_HASH_ROWS):
                digest.update(part.write_ndjson().encode())
        return digest.hexdigest()[:16]


def launches_file(workspace: Workspace) -> Path:
    """Items launched since the last load, one canonical JSON object a line; a load takes them into the items file."""
    return workspace.items_file.with_name("launches.jsonl")


def taxonomy_file(workspace: Workspace) -> Path:
    """Canonical taxonomy, Parquet, one row per concept."""
    return workspace.items_file.with_name("taxonomy.parquet")


def read_canonical(workspace: Workspace) -> CanonicalData:
    """What a workspace holds, launches included; empty tables before the first load.

    Raises:
        WorkspaceError: a file of the workspace is damaged.
    """
    items = _read_parquet(workspace.items_file, ITEM_COLUMNS)
    launches = launches_file(workspace)
    if launches.exists():
        # The last line may have been cut off by a kill; its launch was then never answered.
        whole = [line for line in launches.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        launched = items_frame(Item.model_validate_json(line) for line in whole)
        items = merge_items(items, launched.unique("item_id", keep="last", maintain_order=True))
    return CanonicalData(
        items,
        _read_parquet(workspace.events_file, EVENT_COLUMNS),
        _read_parquet(taxonomy_file(workspace), TAXONOMY_COLUMNS),
    )


def _read_parquet(path: Path, columns: pl.Schema) -> pl.DataFrame:
    if not path.exists():
        return pl.DataFrame(schema=columns)
    try:
        table = pl.read_parquet(path)
        if columns is ITEM_COLUMNS and "also_bought" not in table.columns:  # written before there was this column
            table = table.with_columns(also_bought=pl.lit([], dtype=pl.List(pl.String())))
        return table.select(columns.names()).cast(dict(columns))  # type: ignore[arg-type]  # a schema is a mapping
    except (pl.exceptions.PolarsError, OSError) as error:
        raise WorkspaceError(
            f"{str(path)!r} is damaged ({str(error)[:200]}); ingest the shop's folders into a new workspace"
        ) from error


def write_canonical(workspace: Workspace, data: CanonicalData) -> None:
    """Write the canonical files, each in one atomic step, and take the launches away, which they hold now."""
    workspace.items_file.parent.mkdir(parents=True, exist_ok=True)
    tables = {
        workspace.items_file: data.items,
        workspace.events_file: data.events,
        taxonomy_file(workspace): data.taxonomy,
    }
    for path, table in tables.items():
        temporary = path.with_name(f"{path.name}.next")
        table.write_parquet(temporary)
        temporary.replace(path)
    launches_file(workspace).unlink(missing_ok=True)


def merge_items(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """All items, the new row where both have one, sorted by ``item_id``."""
    return pl.concat([old.join(new, on="item_id", how="anti"), new]).sort("item_id")


def merge_events(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """All events, the new row where both have the same one, in canonical order."""
    kept = old.join(new, on=list(EVENT_IDENTITY), how="anti", nulls_equal=True)
    return pl.concat([kept, new]).sort(EVENT_IDENTITY)


def merge_taxonomy(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """All concepts, the new row where both have one; a concept that is merely mentioned keeps the names it had."""
    known = {row["iri"]: row for row in old.iter_rows(named=True)}
    for row in new.iter_rows(named=True):
        before = known.get(row["iri"])
        if before is not None and not row["labels"]:
            row = {**before, "broader": row["broader"] or before["broader"]}
        known[row["iri"]] = row
    return pl.DataFrame([known[iri] for iri in sorted(known)], schema=TAXONOMY_COLUMNS)


def read_folder(
    folder: ShopFolder,
    old: CanonicalData,
    *,
    also_known: frozenset[str],
    latest: int,
    rejects: Rejects,
    start_file: StartFile,
) -> CanonicalData:
    """The canonical data of a folder merged with the old; refuses bad rows and counts all of them.

    Args:
        folder: what to read.
        old: what is there already.
        also_known: item ids beyond ``old`` that events may name.
        latest: epoch seconds; later events are refused.
        rejects: takes refused rows and the counts.
        start_file: told about each file before it is read.
    """
    item_rows = [_read_items(file, rejects, start_file(file.name)) for file in folder.items]
    if folder.items and not any(rejects.count(file.name).read for file in folder.items):
        raise SourceError(
            f"{', '.join(repr(str(file.path)) for file in folder.items)} holds no rows; expected one item a row"
        )
    taxonomy, link_files, rdf_items = _read_rdf_files(folder.rdf, rejects, start_file)
    found = _last_of_each([*item_rows, *rdf_items], rejects)
    event_rows, derived = _read_events(folder, rejects, latest, start_file)
    old_ids = old.items.select("item_id")
    derived = derived.join(pl.concat([old_ids, found.select("item_id")]), on="item_id", how="anti")
    items = merge_items(old.items, pl.concat([found, derived]))
    known = pl.concat([items["item_id"], pl.Series(sorted(also_known), dtype=pl.String)])
    events = merge_events(old.events, _known_only(event_rows, known, rejects))
    merged = CanonicalData(items, events, merge_taxonomy(old.taxonomy, taxonomy))
    _refuse_cycles(merged, link_files, rejects)
    return merged


_Row = TypeVar("_Row", bound=BaseModel)
_PLACE: Final = pl.Schema({"file": pl.String(), "row": pl.Int64(), "line": pl.Int64()})
"""Where a row came from, beside its canonical columns until the last rule that may refuse it has been asked."""


def _placed(table: pl.DataFrame, file: str, chunk: Chunk, nums: Sequence[int]) -> pl.DataFrame:
    rows = [chunk.places[num].row for num in nums]
    lines = [chunk.places[num].line for num in nums]
    return table.with_columns(
        pl.lit(file).alias("file"),
        pl.Series("row", rows, dtype=pl.Int64),
        pl.Series("line", lines, dtype=pl.Int64),
    )


def _validated(
    adapter: TypeAdapter[list[_Row]], chunk: Chunk, file: str, rejects: Rejects, context: dict[str, Any] | None = None
) -> tuple[list[_Row], list[int]]:
    """The valid rows of a chunk and their places in it; the others are refused, each for its first error."""
    try:
        return adapter.validate_python(chunk.rows, context=context), list(range(len(chunk.rows)))
    except ValidationError as error:
        bad: dict[int, ErrorDetails] = {}
        for detail in error.errors(include_url=False):
            bad.setdefault(int(detail["loc"][0]), detail)
    for place, detail in bad.items():
        _refuse(rejects, file, chunk, place, detail)
    good = [place for place in range(len(chunk.rows)) if place not in bad]
    return adapter.validate_python([chunk.rows[place] for place in good], context=context), good


def _refuse(rejects: Rejects, file: str, chunk: Chunk, place: int, detail: ErrorDetails) -> None:
    field = str(detail["loc"][1]) if len(detail["loc"]) > 1 else None
    rejects.add(
        file,
        reason_of(detail),
        f"{field or 'the row'} {detail['msg']}",
        chunk.places[place],
        field=field,
        value=None if field is None else chunk.rows[place].get(field),
    )


def _read_items(file: SourceFile, rejects: Rejects, tick: Tick) -> pl.DataFrame:
    tables = [pl.DataFrame(schema={**ITEM_COLUMNS, **_PLACE})]
    for chunk in read_rows(file, ("item_id",), ITEM_FIELDS, rejects, tick):
        items, places = _validated(_ITEMS, chunk, file.name, rejects)
        tables.append(_placed(items_frame(items), file.name, chunk, places))
    return pl.concat(tables)


def _last_of_each(tables: Sequence[pl.DataFrame], rejects: Rejects) -> pl.DataFrame:
    """One row per item: the last; those before it are refused."""
    rows = pl.concat([pl.DataFrame(schema={**ITEM_COLUMNS, **_PLACE}), *tables])
    superseded = rows.filter(pl.int_range(pl.len()).reverse().over("item_id") > 0)
    for item_id, file, row, line in superseded.select("item_id", "file", "row", "line").iter_rows():
        message = "the item comes again further down; its last row is taken"
        rejects.add(file, "duplicate_item_id", message, Place(row, line), field="item_id", value=item_id)
    last = rows.unique("item_id", keep="last", maintain_order=True)
    _accept(last, rejects)
    return last.drop(*_PLACE)


def _accept(rows: pl.DataFrame, rejects: Rejects) -> None:
    for file, count in rows.group_by("file").len().iter_rows():
        rejects.count(file).accepted += count


class _FileOrder:
    """Positions for events without clock and position: the count of their user's rows, refused ones too.

    Counting refused rows keeps the positions of the others when such a row is accepted later, so that the same event
    keeps its identity over loads.
    """

    def __init__(self) -> None:
        self._next: Counter[str] = Counter()

    def number(self, chunk: Chunk, events: Sequence[Event], places: Sequence[int]) -> list[int | None]:
        positions = [event.position for event in events]
        event_at = dict(zip(places, range(len(events)), strict=True))
        for place, row in enumerate(chunk.rows):
            at = event_at.get(place)
            if at is not None:
                event = events[at]
                if event.timestamp is None and event.position is None:
                    positions[at] = self._take(event.user_id)
            elif row.get("timestamp") in (None, "") and row.get("position") in (None, ""):
                try:
                    self._take(clean_id(row.get("user_id")))
                except PydanticCustomError:
                    continue
        return positions

    def _take(self, user_id: str) -> int:
        self._next[user_id] += 1
        return self._next[user_id] - 1


def _read_events(
    folder: ShopFolder, rejects: Rejects, latest: int, start_file: StartFile
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Valid events with their places, and the items that the mapping makes from them (else none)."""
    tables = [pl.DataFrame(schema={**EVENT_COLUMNS, **_PLACE})]
    making = folder.items_from_events
    made: dict[str, Item] = {}
    order = _FileOrder()
    for file in folder.events:
        tick = start_file(file.name)
        chunks = read_rows(
            file, ("user_id", "item_id"), EVENT_FIELDS, rejects, tick, items=making, item_fields=ITEM_FIELDS
        )
        for chunk in chunks:
            events, places = _validated(_EVENTS, chunk, file.name, rejects, {"latest": latest})
            positions = order.number(chunk, events, places)
            table = pl.DataFrame(
                {
                    "user_id": [event.user_id for event in events],
                    "item_id": [event.item_id for event in events],
                    "event": [event.event for event in events],
                    "timestamp": [event.timestamp for event in events],
                    "position": positions,
                    "weight": [
                        default_weight(event.event) if event.weight is None else event.weight for event in events
                    ],
                },
                schema=EVENT_COLUMNS,
            )
            table = _placed(table, file.name, chunk, places)
            tables.append(table if making is None else _make_items(table, chunk, places, made, rejects))
    events_table = pl.concat(tables)
    first_time = events_table.group_by("item_id").agg(first=pl.col("timestamp").min())
    derived = items_frame(made[item_id] for item_id in sorted(made)).join(
        first_time, on="item_id", how="left", maintain_order="left"
    )
    return events_table, derived.with_columns(pl.coalesce("available_from", "first").alias("available_from")).drop(
        "first"
    )


def _make_items(
    table: pl.DataFrame, chunk: Chunk, places: Sequence[int], made: dict[str, Item], rejects: Rejects
) -> pl.DataFrame:
    """Make the items that events name for the first time; an event whose item is not valid is refused."""
    keep = []
    for item_id, file, place in zip(table["item_id"], table["file"], places, strict=True):
        try:
            if item_id not in made:
                made[item_id] = Item.model_validate({**chunk.items[place], "item_id": item_id})
            keep.append(True)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            field = str(detail["loc"][0])
            rejects.add(
                file,
                reason_of(detail),
                f"{field} {detail['msg']}",
                chunk.places[place],
                field=field,
                value=chunk.items[place].get(field),
            )
            keep.append(False)
    return table.filter(pl.Series(keep, dtype=pl.Boolean))


def _known_only(rows: pl.DataFrame, known: pl.Series, rejects: Rejects) -> pl.DataFrame:
    """Canonical events of known items; the others are refused. Rows of one identity are one event, weights added."""
    is_known = pl.col("item_id").is_in(known.implode())
    unknown = rows.filter(~is_known)
    for item_id, file, row, line in unknown.select("item_id", "file", "row", "line").iter_rows():
        message = "no such item yet; when it is there, ingest this folder again and the event is taken"
        rejects.add(file, "unknown_item", message, Place(row, line), field="item_id", value=item_id)
    rows = rows.filter(is_known)
    _accept(rows, rejects)
    # Sorted and rounded: a sum of floats depends on its order, and the order of rows must not matter.
    return (
        rows.drop(*_PLACE)
        .sort([*EVENT_IDENTITY, "weight"])
        .group_by(EVENT_IDENTITY, maintain_order=True)
        .agg(pl.col("weight").sum().round(6))
        .select(EVENT_COLUMNS.names())
    )


_Links = dict[tuple[str, str], list[str]]
"""The files that state a (narrower, broader) link."""


def _read_rdf_files(
    files: Sequence[SourceFile], rejects: Rejects, start_file: StartFile
) -> tuple[pl.DataFrame, _Links, list[pl.DataFrame]]:
    """Taxonomy, links and items of all RDF files. A row is a concept, a link between two, or a product."""
    concepts: dict[str, dict[str, Any]] = {}
    links: _Links = {}
    items = []
    for file in files:
        tick = start_file(file.name)
        content = read_rdf(read_bytes(file.path), file.format, where=str(file.path))
        count = rejects.count(file.name)
        for concept in content.concepts:
            labels = [label for text in concept.labels if (label := clean_text(text))]
            known = concepts.setdefault(
                concept.iri, {"iri": concept.iri, "name": concept.name, "labels": [], "broader": []}
            )
            if labels and not known["labels"]:
                known["name"] = labels[0]
            known["labels"] = list(dict.fromkeys([*known["labels"], *labels]))
            known["broader"] = sorted({*known["broader"], *concept.broader})
            for broader in concept.broader:
                links.setdefault((concept.iri, broader), []).append(file.name)
            count.read += 1 + len(concept.broader)
            count.accepted += 1
        first = count.read + 1
        count.read += len(content.products)
        chunk = Chunk(rows=content.products, places=[Place(row) for row in range(first, count.read + 1)])
        found, places = _validated(_ITEMS, chunk, file.name, rejects)
        items.append(_placed(items_frame(found), file.name, chunk, places))
        tick(count.read)
    return pl.DataFrame([concepts[iri] for iri in sorted(concepts)], schema=TAXONOMY_COLUMNS), links, items


def _refuse_cycles(data: CanonicalData, links: _Links, rejects: Rejects) -> None:
    """Count the links of this load's files: those that close a cycle are refused, the others accepted."""
    _, cycles = taxonomy_facts(data.taxonomy, item_facts(data.items))
    for link, files in links.items():
        for file in files:
            if link in cycles:
                message = f"closes a cycle: {link[1]} lies below {link[0]}, or is the same category"
                rejects.add(file, "category_cycle", message, Place(), field="broader", value=f"{link[0]} -> {link[1]}")
            else:
                rejects.count(file).accepted += 1
