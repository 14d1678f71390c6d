from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_shop import write_shop

from kg import KnowledgeGraph, Workspace, schema
from kg.errors import WorkspaceError
from recommender import ranker
from recommender.training import train


def workspace_with_shop(tmp_path: Path) -> Workspace:
    workspace = Workspace.create(tmp_path / "w")
    store = workspace.open_store()
    write_shop(store)
    store.close()
    return workspace


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """``Ranker.fit`` replaced by one that remembers how it was called; epoxy and glue have the same text."""
    calls: list[dict[str, Any]] = []

    def fit(graph: KnowledgeGraph, **options: Any) -> SimpleNamespace:
        calls.append({"graph": graph, **options})
        vectors = np.eye(len(graph.items), 16, dtype=np.float32)
        if options["text_model"] == "blind to stones":
            vectors[graph.items.num("stone")] = 0
        vectors[graph.items.num("epoxy")] = vectors[graph.items.num("glue")]
        options["checkpoint"].mkdir(parents=True)
        metrics: dict[str, Any] = {"ndcg": 0.5}
        if options["seed"] == 99:
            metrics["known"] = {"shipped": "blend", "because": "nothing to validate on"}
        return SimpleNamespace(text_vectors=vectors, metrics=metrics, save=lambda folder: folder.mkdir(parents=True))

    monkeypatch.setattr(ranker.Ranker, "fit", fit)
    return calls


def test_training_saves_the_model_and_writes_similar_text(tmp_path: Path, fitted: list[dict[str, Any]]) -> None:
    workspace = workspace_with_shop(tmp_path)
    report = train(workspace, seed=3)
    assert (report.n_items, report.n_new_items, report.n_users, report.n_interactions) == (7, 4, 3, 4)
    assert report.to_json()["metrics"] == {"ndcg": 0.5}
    assert fitted[0]["seed"] == 3
    assert workspace.model_folder.is_dir()
    assert not (workspace.path / "training").exists()
    store = workspace.open_store()
    assert store.edges(schema.SIMILAR_TO).select("head", "tail").rows() == [("epoxy", "glue")]
    store.close()


def test_texts_that_the_model_cannot_read_are_counted_in_a_note(tmp_path: Path, fitted: list[dict[str, Any]]) -> None:
    workspace = workspace_with_shop(tmp_path)
    assert train(workspace).notes == ()
    (note,) = train(workspace, text_model="blind to stones").notes
    assert note.startswith("the text model cannot read 1 of 7 item texts")
    assert "--text-model" in note


def test_events_without_a_time_among_others_are_counted_in_a_note(tmp_path: Path, fitted: list[dict[str, Any]]) -> None:
    workspace = workspace_with_shop(tmp_path)
    store = workspace.open_store()
    timed = pl.DataFrame({"head": ["u3"], "tail": ["drill"], "position": [0], "weight": [1.0], "source": ["behaviour"]})
    store.write_edges(schema.INTERACTED, timed.with_columns(at=pl.lit(1_700_000_000), last_at=pl.lit(1_700_000_000)))
    store.close()
    (note,) = train(workspace).notes
    assert note.startswith("4 of 5 interactions have no time")


def test_items_that_could_not_be_rehearsed_are_told_in_a_note(tmp_path: Path, fitted: list[dict[str, Any]]) -> None:
    (note,) = train(workspace_with_shop(tmp_path), seed=99).notes
    assert note.startswith("the ranking of known items could not be rehearsed")


def test_training_again_replaces_the_model(tmp_path: Path, fitted: list[dict[str, Any]]) -> None:
    workspace = workspace_with_shop(tmp_path)
    train(workspace)
    (workspace.model_folder / "old").touch()
    train(workspace)
    assert not (workspace.model_folder / "old").exists()
    # Text edges are no part of what is learned from, so the same data train under the same checkpoint name.
    assert fitted[0]["checkpoint"] == fitted[1]["checkpoint"]


def test_nothing_loaded_says_how_to_load(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="firstshelf ingest"):
        train(Workspace.create(tmp_path / "w"))
