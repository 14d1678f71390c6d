from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import polars as pl
from tiny_shop import write_shop

from kg import Workspace, schema
from kg.store import GraphStore
from recommender.doctor import _cold, examine

if TYPE_CHECKING:
    import pytest


def checks(path: Path) -> dict[str, tuple[bool, str]]:
    return {check.name: (check.ok, check.detail) for check in examine(path).checks}


def shop(tmp_path: Path) -> tuple[Workspace, GraphStore]:
    workspace = Workspace.create(tmp_path / "w")
    store = workspace.open_store()
    write_shop(store)
    return workspace, store


def test_a_loaded_but_untrained_workspace_lacks_only_the_model(tmp_path: Path) -> None:
    workspace, store = shop(tmp_path)
    store.close()
    report = examine(workspace.path)
    assert [check.name for check in report.checks if not check.ok] == ["model"]
    assert not report.ok
    found = checks(workspace.path)
    assert found["MADE_BY"] == (True, "4 edges")
    assert found["new products"] == (True, "4 of 7 products have no interaction yet")
    assert "firstshelf train" in found["model"][1]


def test_companions_of_a_new_product_are_a_leak(store: GraphStore) -> None:
    store.write_nodes(schema.COMPANION, pl.DataFrame({"key": ["elsewhere", "saw"]}))
    edges = {"head": ["glue", "glue"], "tail": ["elsewhere", "saw"], "source": ["behaviour"] * 2}
    store.write_edges(schema.ALSO_BOUGHT, pl.DataFrame(edges))
    assert _cold(store) == (
        False,
        "1 ALSO_BOUGHT edges touch products without any interaction; ingest the folder again",
    )


def test_a_leak_and_an_unfinished_load_are_named(tmp_path: Path) -> None:
    workspace, store = shop(tmp_path)
    leak = pl.DataFrame({"head": ["saw"], "tail": ["glue"], "source": ["behaviour"]})
    store.write_edges(schema.BOUGHT_WITH, leak)
    store.set_mark(None)
    store.close()
    found = checks(workspace.path)
    assert found["new products"][0] is False
    assert "1 BOUGHT_WITH" in found["new products"][1]
    assert found["load"][0] is False


def test_no_workspace_is_an_answer_not_an_exception(tmp_path: Path) -> None:
    report = examine(tmp_path / "nothing")
    assert not report.ok
    assert report.checks[-1].name == "workspace"
    assert report.to_json()["ok"] is False


def test_without_a_workspace_the_installation_is_examined() -> None:
    report = examine()
    assert report.ok
    assert [check.name for check in report.checks] == ["compute device", "packaged text model"]


def test_a_damaged_model_is_an_answer_not_an_exception(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    workspace.model_folder.mkdir()
    (workspace.model_folder / "config.json").write_text("{}")
    model = examine(tmp_path / "w").checks[-1]
    assert (model.name, model.ok) == ("model", False)
    assert "firstshelf train" in model.detail


def test_what_was_taken_up_after_training_is_examined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    workspace.model_folder.mkdir()
    monkeypatch.setattr("recommender.engine.load_ranker", lambda workspace: SimpleNamespace(item_ids=("a", "b")))
    (workspace.model_folder / "digests.json").write_text("{}")
    model = examine(tmp_path / "w").checks[-1]
    assert (model.ok, model.detail) == (True, "trained on 2 items, 0 taken up since")
    (workspace.model_folder / "added.safetensors").write_bytes(b"half of it")
    model = examine(tmp_path / "w").checks[-1]
    assert not model.ok
    assert "delete it" in model.detail
