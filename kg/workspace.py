"""``Workspace``: one folder with everything that firstshelf keeps of a shop, in open formats."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kg.errors import WorkspaceError
from kg.store import check_address

if TYPE_CHECKING:
    from kg.store import GraphStore

FORMAT: Final = 1
_FILE: Final = "workspace.json"
_DEFAULT_STORE: Final = "file:graph"


class Workspace:
    """A folder: ``workspace.json``, ``data/`` (Parquet), ``graph/`` (embedded store), ``rejects/``, ``model/``."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._settings = settings

    @classmethod
    def create(cls, path: str | Path, *, store: str | None = None) -> Workspace:
        """Open the workspace at ``path``, or make one there.

        Args:
            path: the folder; made where it does not exist.
            store: address of the graph store; ``None`` keeps the workspace's own (a new one gets an embedded store).

        Raises:
            WorkspaceError: the folder holds something else, a newer workspace, or one with another store.
            StoreError: the address is of no known kind, or holds a login.
        """
        if store is not None:
            check_address(store)
        path = Path(path)
        if (path / _FILE).exists():
            workspace = cls.open(path)
            if store is None or store == workspace._settings["store"]:
                return workspace
            if workspace.items_file.exists():
                raise WorkspaceError(
                    f"workspace {str(path)!r} keeps its graph in {workspace._settings['store']!r}, not in {store!r}; "
                    "leave --store out, or take another workspace folder"
                )
            # Nothing was ever loaded: the first address may have been a mistake.
            workspace.remember(store=store)
            return workspace
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise WorkspaceError(f"{str(path)!r} exists and is not a workspace; give an empty or a new folder")
        path.mkdir(parents=True, exist_ok=True)
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        workspace = cls(path, {"format": FORMAT, "store": store or _DEFAULT_STORE, "created_at": created_at})
        workspace._write()
        return workspace

    @classmethod
    def open(cls, path: str | Path) -> Workspace:
        """Open an existing workspace.

        Raises:
            WorkspaceError: no workspace there, an unreadable one, or one of a newer format.
        """
        path = Path(path)
        return cls(path, _read(path))

    @property
    def store_address(self) -> str:
        """Address of the graph store; a relative ``file:`` address is taken from the workspace folder."""
        address: str = self._settings["store"]
        if address.startswith("file:") and not Path(address[5:]).is_absolute():
            return f"file:{self.path / address[5:]}"
        return address

    @property
    def items_file(self) -> Path:
        """Canonical items, Parquet, one row per item."""
        return self.path / "data" / "items.parquet"

    @property
    def events_file(self) -> Path:
        """Canonical events, Parquet, one row per distinct event."""
        return self.path / "data" / "events.parquet"

    @property
    def rejects_folder(self) -> Path:
        """Rejected rows with file, row number, field, value and reason, one file a load."""
        return self.path / "rejects"

    @property
    def model_folder(self) -> Path:
        """The trained encoders and fusion with their measurements; absent before the first training."""
        return self.path / "model"

    def open_store(self) -> GraphStore:
        """Open the workspace's graph store; see ``kg.open_store`` for the errors."""
        from kg.store import open_store

        return open_store(self.store_address)

    def get(self, name: str) -> Any:
        """A remembered fact (the content hash of the last load, say), whichever process wrote it, or ``None``."""
        return _read(self.path).get(name)

    def remember(self, **facts: Any) -> None:
        """Write JSON facts into ``workspace.json``, in one atomic step; what other processes remembered stays."""
        self._settings = {**_read(self.path), **facts}
        self._write()

    def _write(self) -> None:
        temporary = self.path / f"{_FILE}.{os.getpid()}.next"
        temporary.write_text(json.dumps(self._settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.path / _FILE)


def _read(path: Path) -> dict[str, Any]:
    file = path / _FILE
    if not file.exists():
        raise WorkspaceError(
            f"no workspace at {str(path)!r}; make one with: firstshelf ingest FOLDER --workspace {path}"
        )
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = int(settings["format"])
        settings["store"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(
            f"{str(file)!r} is not a workspace file ({error}); restore it, or ingest into a new folder"
        ) from error
    if found > FORMAT:
        raise WorkspaceError(
            f"workspace {str(path)!r} has format {found}, this firstshelf reads up to {FORMAT}; upgrade firstshelf"
        )
    return settings
