"""``ProcessStore``: the embedded store in a process of its own, behind the same protocol.

kglite takes 1,545 bytes of the about 1,664 that glibc keeps for libraries with static thread-local storage, and
every copy of libgomp takes 120 more. A Python that has loaded torch's and scikit-learn's copies cannot load kglite, one
that has loaded kglite and torch cannot load scikit-learn, and the limit can only be raised before Python starts. A
process that loads nothing but kglite has room, whatever its parent imports.

Messages over the child's stdin and stdout: two lengths of eight bytes, a JSON header, and where a
table travels, the table in Arrow's streaming format. The child ends when its stdin closes, so it never outlives its
parent, and saves the graph as ``close`` does.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final

from kg.errors import StoreError
from kg.paths import Metapath, Step
from kg.schema import Relation
from kg.store import Progress, WriteCount

if TYPE_CHECKING:
    import polars as pl

    from kg.stores.embedded import EmbeddedStore

_SIZES: Final = struct.Struct("<QQ")


class ProcessStore:
    """An ``EmbeddedStore`` in a child process. Calls from several threads take turns."""

    speaks_cypher: ClassVar[bool] = True
    persistent: ClassVar[bool] = True

    def __init__(self, address: str) -> None:
        """Start the child and open the graph; errors are those of ``EmbeddedStore``."""
        self.address: Final = address
        self._lock = threading.Lock()
        # The child finds this very package, whatever folder the caller works in.
        home = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-P", "-c", "from kg.stores.process import serve; serve()", address]
        self._child: subprocess.Popen[bytes] | None = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # An interrupt from the keyboard goes to the whole group: the parent decides, and its end closes stdin.
            process_group=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])},
        )
        try:
            self._receive(None)
        except BaseException:
            self._end()
            raise

    def write_nodes(self, label: str, nodes: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore``."""
        return WriteCount(*self._call("write_nodes", label, frame=nodes, progress=progress))

    def write_edges(self, relation: Relation, edges: pl.DataFrame, *, progress: Progress | None = None) -> WriteCount:
        """See ``GraphStore``."""
        return WriteCount(*self._call("write_edges", _fields(relation), frame=edges, progress=progress))

    def delete_nodes(self, label: str, keys: Sequence[str]) -> int:
        """See ``GraphStore``."""
        return int(self._call("delete_nodes", label, list(keys)))

    def delete_edges(self, relation: Relation, edges: pl.DataFrame) -> int:
        """See ``GraphStore``."""
        return int(self._call("delete_edges", _fields(relation), frame=edges))

    def nodes(self, label: str) -> pl.DataFrame:
        """See ``GraphStore``."""
        table: pl.DataFrame = self._call("nodes", label)
        return table

    def edges(self, relation: Relation) -> pl.DataFrame:
        """See ``GraphStore``."""
        table: pl.DataFrame = self._call("edges", _fields(relation))
        return table

    def match(self, metapath: Metapath, starts: Sequence[str], ends: Sequence[str]) -> list[tuple[str, ...]]:
        """See ``GraphStore``."""
        return [tuple(walk) for walk in self._call("match", _packed(metapath), list(starts), list(ends))]

    def holds(self, metapath: Metapath, walks: Sequence[Sequence[str]]) -> list[tuple[str, ...] | None]:
        """See ``GraphStore``."""
        found = self._call("holds", _packed(metapath), [list(walk) for walk in walks])
        return [None if sources is None else tuple(sources) for sources in found]

    def run(self, cypher: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See ``GraphStore``."""
        rows: list[dict[str, Any]] = self._call("run", cypher, dict(parameters))
        return rows

    def get_mark(self) -> str | None:
        """See ``GraphStore``."""
        mark: str | None = self._call("get_mark")
        return mark

    def set_mark(self, mark: str | None) -> None:
        """See ``GraphStore``."""
        self._call("set_mark", mark)

    def clear(self) -> None:
        """See ``GraphStore``."""
        self._call("clear")

    def close(self) -> None:
        """See ``GraphStore``. Closing twice is fine."""
        if self._child is not None:
            try:
                self._call("close")
            finally:
                self._end()

    def _call(
        self, method: str, *arguments: Any, frame: pl.DataFrame | None = None, progress: Progress | None = None
    ) -> Any:
        with self._lock:
            if self._child is None:
                raise StoreError(f"store {self.address!r} is closed; open it again with open_store()")
            try:
                _send(self._child.stdin, {"method": method, "arguments": arguments}, frame)
                return self._receive(progress)
            except (BrokenPipeError, EOFError) as error:
                status = self._child.wait()
                raise StoreError(
                    f"the process of store {self.address!r} has ended (status {status}) during {method!r}; "
                    "what it acknowledged is on disk: open the store again"
                ) from error

    def _receive(self, progress: Progress | None) -> Any:
        assert self._child is not None
        while True:
            header, frame = _read(self._child.stdout)
            if "progress" in header:
                if progress is not None:
                    progress(header["progress"])
            elif "error" in header:
                kind = {"StoreError": StoreError, "ValueError": ValueError, "KeyError": KeyError}
                raise kind.get(header["error"], StoreError)(header["message"])
            else:
                return header["result"] if frame is None else frame

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            child.wait()
            child.stdout.close()


def serve() -> None:
    """The child: open the address in ``sys.argv[1]``, answer calls until ``close`` or the end of stdin."""
    from kg.stores.embedded import EmbeddedStore

    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Nothing that a library prints may get between the messages.
    os.dup2(2, 1)
    try:
        store = EmbeddedStore(sys.argv[1])
    except Exception as error:  # noqa: BLE001  told to the parent, which raises it
        _send(answers, {"error": type(error).__name__, "message": str(error)})
        return
    _send(answers, {"result": None})
    try:
        while True:
            try:
                header, frame = _read(calls)
            except EOFError:
                return
            try:
                result, table = _answer(store, header["method"], header["arguments"], frame, answers)
                _send(answers, {"result": result}, table)
            except Exception as error:  # noqa: BLE001  told to the parent, which raises it
                _send(answers, {"error": type(error).__name__, "message": str(error)})
                continue
            if header["method"] == "close":
                return
    except BrokenPipeError:
        return
    finally:
        store.close()


def _answer(
    store: EmbeddedStore, method: str, arguments: list[Any], frame: pl.DataFrame | None, answers: IO[bytes]
) -> tuple[Any, pl.DataFrame | None]:
    """The result of a call: JSON, or a table."""

    def progress(n_rows: int) -> None:
        _send(answers, {"progress": n_rows})

    match method, arguments, frame:
        case "nodes", [label], None:
            return None, store.nodes(label)
        case "edges", [relation], None:
            return None, store.edges(Relation(*relation))
        case "write_nodes", [label], nodes if nodes is not None:
            count = store.write_nodes(label, nodes, progress=progress)
            return (count.added, count.updated), None
        case "write_edges", [relation], edges if edges is not None:
            count = store.write_edges(Relation(*relation), edges, progress=progress)
            return (count.added, count.updated), None
        case "delete_nodes", [label, keys], None:
            return store.delete_nodes(label, keys), None
        case "delete_edges", [relation], edges if edges is not None:
            return store.delete_edges(Relation(*relation), edges), None
        case "match", [metapath, starts, ends], None:
            return store.match(_unpacked(metapath), starts, ends), None
        case "holds", [metapath, walks], None:
            return store.holds(_unpacked(metapath), walks), None
        case "run", [cypher, parameters], None:
            return store.run(cypher, parameters), None
        case "get_mark", [], None:
            return store.get_mark(), None
        case "set_mark", [mark], None:
            store.set_mark(mark)
            return None, None
        case "clear", [], None:
            store.clear()
            return None, None
        case "close", [], None:
            store.close()
            return None, None
    raise ValueError(f"the embedded store has no call {method!r} with {len(arguments)} arguments")


def _packed(metapath: Metapath) -> list[Any]:
    return [metapath.name, [[*_fields(step.relation), step.forward] for step in metapath.steps]]


def _unpacked(metapath: list[Any]) -> Metapath:
    name, steps = metapath
    return Metapath(name, tuple(Step(Relation(*relation), forward) for *relation, forward in steps))


def _fields(relation: Relation) -> list[str]:
    return [relation.head_label, relation.type, relation.tail_label]


def _send(pipe: IO[bytes] | None, header: Mapping[str, Any], frame: pl.DataFrame | None = None) -> None:
    assert pipe is not None
    table = io.BytesIO()
    if frame is not None:
        frame.write_ipc_stream(table)
    head = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    pipe.write(_SIZES.pack(len(head), table.tell()))
    pipe.write(head)
    pipe.write(table.getbuffer())
    pipe.flush()


def _read(pipe: IO[bytes] | None) -> tuple[dict[str, Any], pl.DataFrame | None]:
    assert pipe is not None
    sizes = pipe.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        raise EOFError
    head_size, table_size = _SIZES.unpack(sizes)
    header = json.loads(pipe.read(head_size).decode("utf-8", "surrogatepass"))
    if not table_size:
        return header, None
    import polars as pl

    return header, pl.read_ipc_stream(io.BytesIO(pipe.read(table_size)))
