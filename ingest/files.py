"""Reading a shop folder: which files it holds, and their rows as plain mappings, with what cannot be read refused.

Rows are counted here, once: whatever comes out of ``read_rows`` and whatever it refuses add up to ``FileCount.read``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple

import polars as pl
import pyarrow as pa
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from ingest.rows import clip, meant_fields
from kg.errors import SourceError

CHUNK: Final = 20_000
"""Rows validated at a time; bounds the memory that plain Python rows take."""
_MAX_RECORD_LINES: Final = 500
_MAX_RECORD_CHARACTERS: Final = 200_000
_DELIMITERS: Final = ",;\t|"
_TABLE_NAME = re.compile(r"(items|events)\.(jsonl|csv|parquet)(\.gz)?", re.IGNORECASE)
_RDF_NAME = re.compile(r".+\.(ttl|jsonld|nt)(\.gz)?", re.IGNORECASE)

_MAPPING_FORM: Final = '{"items": {"file": NAME, "columns": {FIELD: COLUMN}}, "events": {…}}'

Tick = Callable[[int], None]
"""Called with the number of rows just read."""


class AttributeColumns(BaseModel):
    """Columns whose names begin with ``prefix`` are attributes; the rest of the name is the attribute's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: str
    type: Literal["as found", "text", "number", "yes/no"] = "as found"


class TableMapping(BaseModel):
    """How one file of another layout is read. ``columns`` maps our field to the file's column, ``null`` drops a field.

    ``constants`` gives fields that the file lacks one value for all its rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = None
    columns: dict[str, str | None] = {}
    attributes: list[AttributeColumns] = []
    constants: dict[str, Any] = {}


class ItemsMapping(TableMapping):
    """As ``TableMapping``; ``from_events`` makes the items of a shop that has an order log and no catalogue.

    Then ``columns`` name columns of the events file, an item is described by its first event in file order, and
    ``available_from`` is the time of its first event.
    """

    from_events: bool = False


class FolderMapping(BaseModel):
    """``mapping.json``: how a folder of another layout is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: ItemsMapping = ItemsMapping()
    events: TableMapping = TableMapping()


@dataclass(slots=True)
class SourceFile:
    """One file to be read. ``format`` is the name's ending without ``.gz``."""

    path: Path
    format: str
    mapping: TableMapping = field(default_factory=TableMapping)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name


@dataclass(slots=True)
class ShopFolder:
    """What was found: files by role, in name order, and the names of the files that are not read."""

    path: Path
    items: list[SourceFile]
    events: list[SourceFile]
    rdf: list[SourceFile]
    items_from_events: ItemsMapping | None
    ignored: list[str]


@dataclass(slots=True)
class FileCount:
    """Rows of one file. ``accepted`` counts what went into the canonical data, on its own."""

    read: int = 0
    accepted: int = 0
    rejected: int = 0


class Place(NamedTuple):
    """Where a row stands: data rows count from 1 (a header is none), lines too, where the file has lines."""

    row: int | None = None
    line: int | None = None


class Rejects:
    """What is not taken. Refused rows are counted, and written as JSON lines to a file made when the first one comes.

    ``ignored_columns`` names, for each file, the columns (JSON: fields) that nothing reads, each with the known field
    that it looks like.
    """

    def __init__(self, make_file: Callable[[], Path]) -> None:
        self._make_file = make_file
        self._stream: IO[str] | None = None
        self.path: Path | None = None
        self.reasons: Counter[str] = Counter()
        self.files: dict[str, FileCount] = {}
        self.ignored_columns: dict[str, dict[str, str | None]] = {}

    def count(self, file: str) -> FileCount:
        """The counter of one file."""
        return self.files.setdefault(file, FileCount())

    def add(
        self,
        file: str,
        reason: str,
        message: str,
        place: Place,
        *,
        field: str | None = None,
        value: Any = None,
    ) -> None:
        """Refuse one row; ``value`` is clipped."""
        if self._stream is None:
            self.path = self._make_file()
            self._stream = self.path.open("w", encoding="utf-8")
        shown = None if value is None else clip(value)
        record = {
            "file": file,
            "row": place.row,
            "line": place.line,
            "field": field,
            "value": shown,
            "reason": reason,
            "message": message,
        }
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.reasons[reason] += 1
        self.count(file).rejected += 1

    def close(self) -> None:
        """Finish the file."""
        if self._stream is not None:
            self._stream.close()


def read_mapping(mapping: str | Path | Mapping[str, Any]) -> FolderMapping:
    """A mapping from a mapping or from a JSON file. Raises ``SourceError`` where it is none."""
    where = "mapping" if isinstance(mapping, Mapping) else f"mapping file {str(mapping)!r}"
    try:
        if isinstance(mapping, Mapping):
            return FolderMapping.model_validate(mapping)
        return FolderMapping.model_validate_json(Path(mapping).read_text(encoding="utf-8-sig"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SourceError(f"{where}: {place}: {first['msg']}; expected {_MAPPING_FORM}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{where} cannot be read ({error}); expected a JSON file in UTF-8") from error


def find_files(source: str | Path, mapping: str | Path | Mapping[str, Any] | None = None) -> ShopFolder:
    """Find what a shop folder holds.

    ``mapping`` (a mapping, or the path of a JSON file) goes before ``mapping.json`` in the folder.

    Raises:
        SourceError: no such folder, nothing to read in it, a wrong mapping or one that names a missing file.
    """
    folder = Path(source)
    if not folder.exists():
        raise SourceError(
            f"folder {str(folder)!r} does not exist; give the folder that holds items.jsonl and events.csv"
        )
    if not folder.is_dir():
        raise SourceError(f"{str(folder)!r} is a file; give the folder that it lies in")
    own = folder / "mapping.json"
    rules = (
        read_mapping(mapping if mapping is not None else own)
        if mapping is not None or own.exists()
        else FolderMapping()
    )
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    items = [] if rules.items.from_events else _tables(folder, names, "items", rules.items)
    events = _tables(folder, names, "events", rules.events)
    rdf = [SourceFile(folder / name, _format(name)) for name in names if _RDF_NAME.fullmatch(name)]
    taken = {file.name for file in (*items, *events, *rdf)} | {"mapping.json"}
    if not (items or events or rdf):
        listing = f"it holds {', '.join(map(repr, names[:8]))}" if names else "it is empty"
        raise SourceError(
            f"folder {str(folder)!r} has neither items nor events ({listing}); expected items.jsonl, .csv or .parquet "
            "and events.csv, .jsonl or .parquet (.gz too), or a mapping.json that names the files"
        )
    return ShopFolder(
        folder,
        items,
        events,
        rdf,
        rules.items if rules.items.from_events else None,
        [name for name in names if name not in taken],
    )


def _format(name: str) -> str:
    return name.lower().removesuffix(".gz").rpartition(".")[2]


def _tables(folder: Path, names: Sequence[str], role: str, mapping: TableMapping) -> list[SourceFile]:
    if mapping.file is None:
        found = [name for name in names if (match := _TABLE_NAME.fullmatch(name)) and match[1].lower() == role]
    else:
        if Path(mapping.file).name != mapping.file:
            raise SourceError(
                f"mapping: {role}.file {mapping.file!r} is not a plain file name; put the file into the folder"
            )
        if mapping.file not in names:
            raise SourceError(f"mapping: {role}.file {mapping.file!r} is not in {str(folder)!r}")
        found = [mapping.file]
    files = [SourceFile(folder / name, _format(name), mapping) for name in found]
    for file in files:
        if file.format not in {"jsonl", "csv", "parquet"}:
            raise SourceError(f"{str(file.path)!r} is of no known format; expected .jsonl, .csv or .parquet (.gz too)")
    return files


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked where it is gzip. Turns every way in which that fails into a ``SourceError``."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed and path.name.lower().endswith(".gz"):
                raise SourceError(
                    f"{str(path)!r} is not a gzip file, whatever its name says; pack it again or rename it"
                )
            if packed:
                with gzip.open(raw) as unpacked:
                    yield unpacked  # type: ignore[misc]  # a binary file, though its type does not say so
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{str(path)!r} is a damaged gzip file ({error}); copy or pack it again") from error
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, unpacked."""
    with open_bytes(path) as stream:
        return stream.read()


@dataclass(slots=True)
class Chunk:
    """Some rows of a file and where they stand in it.

    ``items`` describes each row's item where the mapping makes items from events; else it is empty. ``columns`` are all
    that the file has, also those that are not in the rows since nothing reads them.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)


def read_rows(
    file: SourceFile,
    needed: Sequence[str],
    fields: Sequence[str],
    rejects: Rejects,
    tick: Tick,
    *,
    items: TableMapping | None = None,
    item_fields: Sequence[str] = (),
) -> Iterator[Chunk]:
    """The rows of one file as mappings from our field names, in chunks; refuses what is no row.

    Args:
        file: what to read, with its mapping.
        needed: fields without which no row can be read.
        fields: all fields that the rows may have.
        rejects: takes refused rows, the count of rows read and the columns that are not read.
        tick: told about progress.
        items: how each row also describes an item, with the fields that an item may have.

    Raises:
        SourceError: the file cannot be read at all, is empty, or lacks a needed column.
    """
    count = rejects.count(file.name)
    rename = _Renamer(file.name, file.mapping, fields)
    rename_item = None if items is None else _Renamer(file.name, items, item_fields)
    columns = rename.columns | (rename_item.columns if rename_item else set())
    if file.format == "parquet":
        chunks = _read_parquet(file, rename, needed, rejects, None if rename.attributes else columns)
    elif file.format == "csv":
        chunks = _read_csv(file, rename, needed, rejects)
    else:
        chunks = _read_jsonl(file, rejects)
    before = 0
    ignored: set[str] = set()
    for chunk in chunks:
        ignored |= {
            name for name in chunk.columns if not rename.reads(name) and not (rename_item and rename_item.reads(name))
        }
        if rename_item is not None:
            chunk.items = [rename_item(row) for row in chunk.rows]
        if rename.is_needed:
            chunk.rows = [rename(row) for row in chunk.rows]
        yield chunk
        tick(count.read - before)
        before = count.read
    if ignored:
        rejects.ignored_columns[file.name] = meant_fields(sorted(ignored), fields)


class _Renamer:
    """From a file's columns to our fields."""

    def __init__(self, file: str, mapping: TableMapping, fields: Sequence[str]) -> None:
        self.source_of: dict[str, str] = {}
        taken = {column for column in mapping.columns.values() if column is not None}
        for name in fields:
            column = mapping.columns.get(name, None if name in taken else name)
            if column is not None:
                self.source_of[name] = column
        unknown = set(mapping.columns) - set(fields)
        if unknown:
            raise SourceError(
                f"mapping: {sorted(unknown)[0]!r} is no field that {file!r} can have; "
                f"expected one of {', '.join(fields)}"
            )
        self.columns = set(self.source_of.values())
        self.constants = mapping.constants
        self.attributes = mapping.attributes
        self.is_needed = bool(mapping.columns or mapping.constants or mapping.attributes)
        self._dropped = {name for name, column in mapping.columns.items() if column is None}

    def reads(self, column: str) -> bool:
        """Whether a column is read, or left out because the mapping says so."""
        if column in self.columns or column in self._dropped:
            return True
        return any(column.startswith(columns.prefix) for columns in self.attributes)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        renamed = {name: row[column] for name, column in self.source_of.items() if column in row}
        for name, value in self.constants.items():
            if renamed.get(name) in (None, ""):
                renamed[name] = value
        if self.attributes:
            renamed["attributes"] = self._attributes(row)
        return renamed

    def _attributes(self, row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for column, value in row.items():
            if value is None or value == "":
                continue
            for columns in self.attributes:
                if column.startswith(columns.prefix):
                    found[column.removeprefix(columns.prefix)] = _as_type(value, columns.type)
                    break
        return found


_YES_NO: Final = {"true": True, "yes": True, "y": True, "1": True, "false": False, "no": False, "n": False, "0": False}


def _as_type(value: Any, type_: str) -> Any:
    """The value as the mapping says, where it can be; otherwise as found, so that nothing is lost."""
    if type_ == "text" and not isinstance(value, list):
        return str(value)
    if type_ == "yes/no":
        return _YES_NO.get(str(value).strip().lower(), value)
    if type_ == "number" and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_columns(file: SourceFile, rename: _Renamer, needed: Sequence[str], columns: Sequence[str]) -> None:
    for name in needed:
        column = rename.source_of.get(name, name)
        if column not in columns and name not in rename.constants:
            raise SourceError(
                f"{str(file.path)!r} has no column {column!r} (it has {clip(', '.join(map(repr, columns)))}); "
                "rename the column, or describe the layout in mapping.json"
            )


def _read_parquet(
    file: SourceFile, rename: _Renamer, needed: Sequence[str], rejects: Rejects, columns: set[str] | None
) -> Iterator[Chunk]:
    count = rejects.count(file.name)
    try:
        with open_bytes(file.path) as stream:
            source = stream if isinstance(stream, io.BufferedReader) else io.BytesIO(stream.read())
            table = parquet.ParquetFile(source)
            _check_columns(file, rename, needed, table.schema_arrow.names)
            names = table.schema_arrow.names
            wanted = names if columns is None else [name for name in names if name in columns]
            for batch in table.iter_batches(batch_size=CHUNK, columns=wanted):
                rows = pl.from_arrow(batch).to_dicts()  # type: ignore[union-attr]  # a batch is a frame, no series
                first = count.read + 1
                count.read += len(rows)
                places = [Place(row) for row in range(first, count.read + 1)]
                yield Chunk(rows=rows, places=places, columns=set(names))
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise SourceError(f"{str(file.path)!r} is not a readable Parquet file ({clip(str(error))})") from error


def _lines(file: SourceFile, stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a text file without a byte-order mark; refuses what is no text in one byte units."""
    first = stream.readline()
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first[:4096]:
        raise SourceError(
            f"{str(file.path)!r} is UTF-16 or no text at all; expected UTF-8: save it as UTF-8 and try again"
        )
    first = first.removeprefix(b"\xef\xbb\xbf")
    if first:
        yield first
    yield from stream


def _read_jsonl(file: SourceFile, rejects: Rejects) -> Iterator[Chunk]:
    count = rejects.count(file.name)
    chunk = Chunk()
    with open_bytes(file.path) as stream:
        for line_number, line in enumerate(_lines(file, stream), start=1):
            if not line.strip():
                continue
            count.read += 1
            place = Place(count.read, line_number)
            try:
                row = from_json(line.decode())
            except UnicodeDecodeError as error:
                rejects.add(file.name, "encoding", f"not UTF-8: {error.reason}", place, value=_undecoded(line))
                continue
            except ValueError as error:
                rejects.add(file.name, "invalid_json", f"not JSON: {error}", place, value=_undecoded(line))
                continue
            if not isinstance(row, dict):
                message = "a row is a JSON object on one line"
                rejects.add(file.name, "not_an_object", message, place, value=_undecoded(line))
                continue
            chunk.rows.append(row)
            chunk.columns.update(row)
            chunk.places.append(place)
            if len(chunk.rows) >= CHUNK:
                yield chunk
                chunk = Chunk()
    yield chunk


def _undecoded(line: bytes) -> str:
    return line[:1000].decode("utf-8", "backslashreplace").rstrip("\r\n")


class _OpenQuoteError(Exception):
    """A line ends inside a quoted field."""


class _CsvReader:
    """Records of a CSV file, line by line, so that one unclosed quote cannot swallow the rest of the file.

    A record goes on over line ends where its quote is closed later and the whole has as many fields as the header,
    unless the lines that it would take in look like rows of their own. Otherwise its first line alone is broken, and
    reading goes on with the next line.
    """

    def __init__(self, lines: Iterator[bytes], delimiter: str) -> None:
        self._lines = lines
        self._ahead: deque[bytes] = deque()
        self.delimiter = delimiter
        self.line_number = 0
        self.id_columns: list[int] = []

    def take(self) -> bytes | None:
        self.line_number += 1
        return self._ahead.popleft() if self._ahead else next(self._lines, None)

    def give_back(self, lines: Sequence[bytes]) -> None:
        self.line_number -= len(lines)
        self._ahead.extendleft(reversed(lines))

    def parse(self, text: str) -> list[str]:
        """Fields of one complete record. Raises ``_OpenQuoteError`` or ``csv.Error``."""
        if '"' not in text:
            return text.rstrip("\r\n").split(self.delimiter)
        usual_limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
        try:
            records = list(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise _OpenQuoteError from None
            raise
        finally:
            csv.field_size_limit(usual_limit)
        if len(records) != 1:
            raise csv.Error("a line break outside quotes")
        return records[0]

    def go_on(self, first: str, width: int) -> list[str] | None:
        """Fields of a record that begins with ``first`` and is open at its end; ``None`` where it never closes."""
        parts, following, length = [first], list[bytes](), len(first)
        while len(following) < _MAX_RECORD_LINES and length < _MAX_RECORD_CHARACTERS:
            line = self.take()
            if line is None:
                self.line_number -= 1
                break
            following.append(line)
            length += len(line)
            try:
                parts.append(line.decode())
                if b'"' not in line:
                    continue
                fields = self.parse("".join(parts))
            except _OpenQuoteError:
                continue
            except (UnicodeDecodeError, csv.Error):
                break
            if len(fields) == width and not self._are_rows(parts, width):
                return fields
            break
        self.give_back(following)
        return None

    def _are_rows(self, lines: Sequence[str], width: int) -> bool:
        """Whether every line has the fields of a row and ids made of the same kinds of characters as the first line's.

        By the book they are one record with a long text. But two rows with one stray quote each look the same, and a
        line of a text that has as many commas as a row *and* begins like an id is rarer than those.
        """
        rows = [line.split(self.delimiter) for line in lines]
        if any(len(row) != width for row in rows):
            return False
        return len({tuple(_kinds_of_characters(row[place]) for place in self.id_columns) for row in rows}) == 1


def _kinds_of_characters(text: str) -> str:
    text = text.strip().strip('"')
    return "".join(sorted({"9" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in text}))


def _read_csv(file: SourceFile, rename: _Renamer, needed: Sequence[str], rejects: Rejects) -> Iterator[Chunk]:
    count = rejects.count(file.name)
    with open_bytes(file.path) as stream:
        lines = _lines(file, stream)
        header = next(lines, b"")
        if not header.strip():
            raise SourceError(f"{str(file.path)!r} is empty; expected a header line with {', '.join(needed)}")
        try:
            text = header.decode()
        except UnicodeDecodeError as error:
            raise SourceError(f"{str(file.path)!r} is not UTF-8 ({error.reason}); save it as UTF-8") from error
        reader = _CsvReader(lines, max(_DELIMITERS, key=text.count))
        reader.line_number = 1
        try:
            columns = [name.strip() for name in reader.parse(text)]
        except (csv.Error, _OpenQuoteError) as error:
            raise SourceError(f"{str(file.path)!r} has broken quotes in its header line") from error
        _check_columns(file, rename, needed, columns)
        ids = {rename.source_of.get(name, name) for name in needed}
        reader.id_columns = [place for place, column in enumerate(columns) if column in ids]
        chunk = Chunk(columns=set(columns))
        while (line := reader.take()) is not None:
            if not line.strip():
                continue
            count.read += 1
            line_number = reader.line_number
            place = Place(count.read, line_number)
            try:
                text = line.decode()
                fields = reader.parse(text)
            except UnicodeDecodeError as error:
                rejects.add(file.name, "encoding", f"not UTF-8: {error.reason}", place, value=_undecoded(line))
                continue
            except _OpenQuoteError:
                continued = reader.go_on(text, len(columns))
                if continued is None:
                    message = "a quote is opened and not closed; double the quotes inside a quoted field"
                    rejects.add(file.name, "broken_quotes", message, place, value=_undecoded(line))
                    continue
                fields = continued
            except csv.Error as error:
                rejects.add(file.name, "broken_quotes", f"not CSV: {error}", place, value=_undecoded(line))
                continue
            if len(fields) != len(columns):
                message = f"{len(fields)} fields; the header has {len(columns)}"
                rejects.add(file.name, "wrong_number_of_fields", message, place, value=_undecoded(line))
                continue
            chunk.rows.append(dict(zip(columns, fields, strict=True)))
            chunk.places.append(place)
            if len(chunk.rows) >= CHUNK:
                yield chunk
                chunk = Chunk()
        yield chunk
