from __future__ import annotations

import json
from pathlib import Path

import pytest

from kg import Workspace
from kg.errors import WorkspaceError
from recommender.demo import new_product, run_demo


def test_a_workspace_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "mine")
    with pytest.raises(WorkspaceError, match="your own"):
        run_demo(tmp_path / "mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(WorkspaceError):
        run_demo(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_the_launched_product_is_new_to_the_shop(tmp_path: Path) -> None:
    items = [{"item_id": f"p{n}", "title": f"Lamp {n}"} for n in range(3)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    launched = new_product(tmp_path)
    assert launched["item_id"] not in {item["item_id"] for item in items}
    assert launched["title"] == "Lamp 2 (second edition)"
