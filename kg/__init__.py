"""The knowledge graph: schema, stores, Cypher, paths, and the frozen snapshot that models see."""

from kg.errors import FirstshelfError
from kg.paths import METAPATHS, Metapath, Path, PathEdge, PathNode, Step
from kg.schema import Relation, quote_identifier
from kg.snapshot import Facts, KnowledgeGraph, Vocabulary, snapshot
from kg.store import GraphStore, WriteCount, open_store
from kg.workspace import Workspace

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
