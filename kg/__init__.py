"""The knowledge graph: schema, stores, Cypher, paths, and the frozen snapshot that models see."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kg.errors import FirstshelfError
    from kg.paths import METAPATHS, Metapath, Path, PathEdge, PathNode, Step
    from kg.schema import Relation, quote_identifier
    from kg.snapshot import Facts, KnowledgeGraph, Vocabulary, snapshot
    from kg.store import GraphStore, WriteCount, open_store
    from kg.workspace import Workspace

_HOMES = {
    "kg.errors": ("FirstshelfError",),
    "kg.paths": ("METAPATHS", "Metapath", "Path", "PathEdge", "PathNode", "Step"),
    "kg.schema": ("Relation", "quote_identifier"),
    "kg.snapshot": ("Facts", "KnowledgeGraph", "Vocabulary", "snapshot"),
    "kg.store": ("GraphStore", "WriteCount", "open_store"),
    "kg.workspace": ("Workspace",),
}

__all__ = [
    "METAPATHS",
    "Facts",
    "FirstshelfError",
    "GraphStore",
    "KnowledgeGraph",
    "Metapath",
    "Path",
    "PathEdge",
    "PathNode",
    "Relation",
    "Step",
    "Vocabulary",
    "Workspace",
    "WriteCount",
    "open_store",
    "quote_identifier",
    "snapshot",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line answers --help without loading polars and numpy.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'kg' has no attribute {name!r}; it offers {__all__}")
