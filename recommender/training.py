"""``train``: from a loaded workspace to a saved model and the SIMILAR_TO edges that explanations walk."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.content import ItemFacts
from kg import schema, snapshot
from kg.errors import WorkspaceError
from recommender.changed import save_digests
from recommender.similar_text import replace_similar_text

if TYPE_CHECKING:
    from kg.snapshot import KnowledgeGraph
    from kg.workspace import Workspace
    from recommender.ranker import Ranker

Progress = Callable[[str, int, int], None]
"""Called with the stage, the steps done and the steps in all."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What training saw and measured on held-out items; ``metrics`` is also saved beside the model."""

    n_items: int
    n_new_items: int
    n_users: int
    n_interactions: int
    similar_edges: int
    seed: int
    seconds: float
    metrics: dict[str, Any]
    notes: tuple[str, ...]
    """What is degraded in the model, in words; empty where nothing is."""

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def train(
    workspace: Workspace, *, text_model: str | None = None, seed: int = 0, progress: Progress | None = None
) -> TrainReport:
    """Train encoders and fusion on everything the workspace knows, and put them live in it.

    Finished stages are kept in the workspace until the model is saved: an interrupted training goes on from there.

    Args:
        workspace: a workspace with loaded data.
        text_model: name or path of a sentence-transformers model; ``None`` takes the packaged MiniLM.
        seed: the same data and seed give the same model on the same machine.
        progress: called with the stage, steps done, steps in all.

    Raises:
        TrainingError: the data cannot train anything (no events, one user, one item).
        WorkspaceError: nothing is loaded, or the last load did not finish.
    """
    from recommender.ranker import FORMAT, Ranker

    started = time.perf_counter()
    store = workspace.open_store()
    try:
        if store.get_mark() is None:
            raise WorkspaceError(
                f"workspace {str(workspace.path)!r} holds no finished load; run: "
                f"firstshelf ingest FOLDER --workspace {workspace.path}"
            )
        graph = snapshot(store, until=None)
        request = hashlib.sha256(repr((FORMAT, graph.content_hash, text_model, seed)).encode()).hexdigest()[:16]
        checkpoint = workspace.path / "training" / request
        ranker = Ranker.fit(graph, text_model=text_model, seed=seed, progress=progress, checkpoint=checkpoint)
        workspace.remember(trained=None)
        similar = replace_similar_text(store, graph, ranker.text_vectors, np.arange(len(graph.items)))
        saved = workspace.model_folder.with_name("model.next")
        shutil.rmtree(saved, ignore_errors=True)
        ranker.save(saved)
        save_digests(graph, saved)
        shutil.rmtree(workspace.model_folder, ignore_errors=True)
        saved.rename(workspace.model_folder)
        shutil.rmtree(checkpoint.parent, ignore_errors=True)
        workspace.remember(trained=secrets.token_hex(8))
    finally:
        store.close()
    return TrainReport(
        n_items=len(graph.items),
        n_new_items=int((graph.n_events == 0).sum()),
        n_users=len(graph.users),
        n_interactions=graph.interactions.nnz,
        similar_edges=similar.height,
        seed=seed,
        seconds=round(time.perf_counter() - started, 1),
        metrics=ranker.metrics,
        notes=_notes(graph, ranker),
    )


def _notes(graph: KnowledgeGraph, ranker: Ranker) -> tuple[str, ...]:
    told = np.array([bool(text.strip()) for text in ItemFacts.of(graph).sentences()])
    unread = int((told & ~ranker.text_vectors.any(axis=1)).sum())
    notes = []
    if unread:
        notes.append(
            f"the text model cannot read {unread:,} of {told.sum():,} item texts, whose script is not in its "
            "vocabulary: they are compared by their words and characters alone; a sentence-transformers model that "
            "reads them can be given with --text-model"
        )
    times = graph.facts[schema.INTERACTED].at
    untimed = int((times < 0).sum())
    if 0 < untimed < len(times):
        notes.append(
            f"{untimed:,} of {len(times):,} interactions have no time, so that launches are rehearsed with random "
            "items instead of spans of time; give every event a timestamp"
        )
    notes += [
        f"the ranking of {kind} items could not be rehearsed, since too few events are left when some are hidden: it "
        "is an untrained blend, and its odds are taken from the other items"
        for kind in ("new", "known")
        if "because" in ranker.metrics.get(kind, {})
    ]
    return tuple(notes)
