"""Which items say something else now than when the model was trained: they are encoded anew at opening."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from encoders.content import ItemFacts
from kg.errors import WorkspaceError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from kg.snapshot import KnowledgeGraph

_FILE: Final = "digests.json"


def save_digests(graph: KnowledgeGraph, folder: Path) -> None:
    """Keep one digest of what the catalogue says of each item beside the model that was trained on it."""
    (folder / _FILE).write_text(json.dumps(_digests(graph)), encoding="utf-8")


def changed_items(graph: KnowledgeGraph, folder: Path) -> NDArray[np.int64]:
    """Nums of the items whose facts are not those of ``save_digests``; items that came later are not among them.

    Args:
        graph: holds the model's items first, in their order.
        folder: of the model.

    Raises:
        WorkspaceError: the digests are missing or damaged.
    """
    try:
        before: dict[str, str] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"the model in {str(folder)!r} is damaged ({error}); run: firstshelf train") from error
    now = _digests(graph)
    return graph.items.nums([item_id for item_id, digest in before.items() if now.get(item_id, digest) != digest])


def _digests(graph: KnowledgeGraph) -> dict[str, str]:
    facts = ItemFacts.of(graph)
    columns = [getattr(facts, column.name) for column in fields(facts)]
    rows = zip(*columns, strict=True)
    return {row[0]: hashlib.blake2b(repr(row).encode(), digest_size=8).hexdigest() for row in rows}
