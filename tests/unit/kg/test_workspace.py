"""A workspace is a folder that says what it is."""

import json
from pathlib import Path

import pytest

from kg import Workspace
from kg.errors import StoreError, WorkspaceError
from kg.workspace import FORMAT


def test_a_new_workspace_keeps_its_graph_inside(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "shop.workspace")
    assert workspace.store_address == f"file:{tmp_path / 'shop.workspace' / 'graph'}"
    store = workspace.open_store()
    store.set_mark("cafe")
    store.close()
    again = Workspace.open(tmp_path / "shop.workspace").open_store()
    assert again.get_mark() == "cafe"
    again.close()


def test_facts_are_remembered_and_creating_again_opens(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "w", store="memory:").remember(content_hash="beef", name="電鑽")
    again = Workspace.create(tmp_path / "w")
    assert (again.get("content_hash"), again.get("name"), again.get("nothing")) == ("beef", "電鑽", None)
    assert again.store_address == "memory:"
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["workspace.json"]


def test_another_store_is_refused_once_something_is_loaded(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "w", store="neo4j://typo:7687")
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    assert Workspace.open(tmp_path / "w").store_address == "memory:"
    workspace.items_file.parent.mkdir()
    workspace.items_file.touch()
    with pytest.raises(WorkspaceError, match="keeps its graph in 'memory:'"):
        Workspace.create(tmp_path / "w", store="neo4j://localhost:7687")


@pytest.mark.parametrize("address", ["neo4j://ann:hunter2@localhost:7687", "graph"])
def test_a_wrong_address_leaves_no_workspace_behind(tmp_path: Path, address: str) -> None:
    with pytest.raises(StoreError):
        Workspace.create(tmp_path / "w", store=address)
    assert not (tmp_path / "w").exists()


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(WorkspaceError, match="is not a workspace"):
        Workspace.create(tmp_path)
    with pytest.raises(WorkspaceError, match="no workspace at"):
        Workspace.open(tmp_path)


def test_a_newer_or_broken_workspace_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "workspace.json"
    file.write_text(json.dumps({"format": FORMAT + 1, "store": "memory:"}), encoding="utf-8")
    with pytest.raises(WorkspaceError, match=f"format {FORMAT + 1}"):
        Workspace.open(tmp_path)
    for text in ("{", "[]", '{"format": "one", "store": "memory:"}', '{"format": 1}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(WorkspaceError, match="not a workspace file"):
            Workspace.open(tmp_path)


def test_what_another_process_remembers_is_seen_and_stays(tmp_path: Path) -> None:
    first = Workspace.create(tmp_path / "w")
    second = Workspace.open(tmp_path / "w")
    first.remember(content_hash="one")
    assert second.get("content_hash") == "one"
    second.remember(launching=["X"])
    assert first.get("launching") == ["X"]
    assert Workspace.open(tmp_path / "w").get("content_hash") == "one"
