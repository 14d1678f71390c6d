"""Which items say something else now than what the ranker read of them; what it read after training is kept.

``digests.json`` lies beside the model and holds one digest of what the catalogue said of each item at training.
``added.safetensors`` lies there too: what the ranker read of items that were ingested, launched or changed since. It is
only ever written whole; what it lacks is read again from the graph, which is slow and gives the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from encoders.content import ItemFacts
from kg.errors import WorkspaceError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from kg.snapshot import KnowledgeGraph
    from recommender.ranker import Ranker

_TRAINED: Final = "digests.json"
_ADDED: Final = "added.safetensors"


def save_digests(graph: KnowledgeGraph, folder: Path) -> None:
    """Keep one digest of what the catalogue says of each item beside the model that was trained on it."""
    (folder / _TRAINED).write_text(json.dumps(_digests(graph)), encoding="utf-8")


def save_added(ranker: Ranker, graph: KnowledgeGraph, folder: Path) -> None:
    """Keep what a ranker read after training beside its model, in one atomic step; ``load_added`` reads it.

    Args:
        ranker: has taken up every item of the graph.
        graph: holds the ranker's items in their order.
        folder: of the model.
    """
    from safetensors.numpy import save_file

    item_nums, arrays = ranker.added()
    about = {
        "model": ranker.fingerprint,
        "item_ids": json.dumps(ranker.item_ids),
        "digests": json.dumps(_digests(graph, item_nums)),
    }
    # Processes that share a graph in Neo4j may write at the same time: each has a file of its own until it is whole.
    begun = folder / f"{_ADDED}.{os.getpid()}.next"
    arrays = {name: np.ascontiguousarray(array) for name, array in {**arrays, "item_nums": item_nums}.items()}
    save_file(arrays, begun, metadata=about)
    with begun.open("rb") as file:
        os.fsync(file.fileno())
    begun.replace(folder / _ADDED)


def load_added(ranker: Ranker, folder: Path) -> dict[str, str]:
    """Give a trained ranker what was read after training, and return the digests of all that it holds then, by item id.

    Raises:
        WorkspaceError: a file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        digests: dict[str, str] = json.loads((folder / _TRAINED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"the model in {str(folder)!r} is damaged ({error}); run: firstshelf train") from error
    added = folder / _ADDED
    if not added.exists():
        return digests
    try:
        with safe_open(added, framework="numpy") as file:
            about = file.metadata()
            # A process that was open while another one trained keeps what its own, older model has read.
            if about["model"] != ranker.fingerprint:
                return digests
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file has keys but no iterator
        ranker.put_added(json.loads(about["item_ids"]), arrays.pop("item_nums"), arrays)
        digests |= json.loads(about["digests"])
        return digests
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise WorkspaceError(
            f"{str(added)!r} is damaged ({error}); delete it: what it held is read again from the graph"
        ) from error


def changed_items(graph: KnowledgeGraph, digests: dict[str, str]) -> NDArray[np.int64]:
    """Nums of the items of a graph whose facts are not those of the digests, new ones among them. Sorted."""
    now = _digests(graph)
    return graph.items.nums([item_id for item_id, digest in now.items() if digests.get(item_id) != digest])


def _digests(graph: KnowledgeGraph, item_nums: NDArray[np.int64] | None = None) -> dict[str, str]:
    facts = ItemFacts.of(graph, item_nums)
    columns: list[Any] = [getattr(facts, column.name) for column in fields(facts)]
    rows = zip(*columns, strict=True)
    return {row[0]: hashlib.blake2b(repr(row).encode(), digest_size=8).hexdigest() for row in rows}
