"""``evaluate`` with the real ranker on the generated shop: it finds tastes that are there, and none that are not."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from ingest import generate_shop, load
from kg import Workspace, schema, snapshot
from recommender import evaluation, splits
from recommender.cli import app


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    generate_shop(folder / "shop", seed=0)
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


def test_shuffled_tastes_fall_to_chance(workspace):
    """Every event gets the item of a random other event: what is left to be found is nothing."""
    with closing(workspace.open_store()) as store:
        graph = snapshot(store, until=None)
    facts = graph.facts[schema.INTERACTED]
    tails = np.random.default_rng(0).permutation(facts.tails)
    _, first = np.unique(facts.heads * len(graph.items) + tails, return_index=True)
    shuffled = replace(facts, tails=tails).select(np.isin(np.arange(len(facts)), first))
    graph = replace(graph, facts={**graph.facts, schema.INTERACTED: shuffled}, content_hash="shuffled")
    split = splits.split_graph(graph, seed=0)
    _, comparisons = evaluation.evaluate_splits([(0, split)], evaluation._fit_ranker, n_splits=1)
    found = next(c for c in comparisons if (c.method, c.pool, c.over) == ("random", "new", "users"))
    assert abs(found.interval.difference) < 0.03
