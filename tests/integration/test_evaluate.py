"""``evaluate`` with the real ranker on the generated shop finds known tastes; with tastes shuffled: tests/quality."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from brief_shop import write_brief_shop
from typer.testing import CliRunner

from ingest import load
from kg import Workspace
from recommender.cli import app


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    write_brief_shop(folder / "shop")
    place = Workspace.create(folder / "w")
    with closing(place.open_store()) as store:
        load(folder / "shop", store, workspace=place)
    return place


def test_known_tastes_are_found_in_items_nobody_has_bought(workspace):
    answer = CliRunner().invoke(app, ["evaluate", "--workspace", str(workspace.path), "--protocol", "time", "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    ndcg = {(cell["method"], cell["pool"]): cell["measures"]["ndcg@20"] for cell in found["cells"]}
    against = {(c["method"], c["pool"], c["over"]): c["interval"] for c in found["comparisons"]}
    assert against["random", "new", "users"]["difference_low"] > 0.03
    assert ndcg["firstshelf", "new"] > 0.9 * ndcg["tfidf", "new"]
    assert ndcg["firstshelf", "all"] > ndcg["random", "all"]
    assert not workspace.model_folder.exists()
