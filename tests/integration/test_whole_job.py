"""The whole job on the generated shop, whose tastes are known, on both stores: from the files to a live launch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ingest import Tastes, generate_shop, load
from kg import METAPATHS, Workspace, schema
from recommender import Engine
from recommender.cli import app
from recommender.demo import new_product
from recommender.training import train


@dataclass(frozen=True)
class Job:
    folder: Path
    workspace: Workspace
    tastes: Tastes
    items: dict[str, dict]


@pytest.fixture(scope="module", params=["embedded", "neo4j"])
def job(request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The demo's workspace, and the same in Neo4j: loaded, trained and launched into there."""
    folder = tmp_path_factory.mktemp(f"whole-job-{request.param}")
    tastes = generate_shop(folder / "shop", seed=0)
    launched = new_product(folder / "shop")
    if request.param == "embedded":
        shutil.copytree(demo, folder / "w")
        workspace = Workspace.open(folder / "w")
    else:
        address = request.getfixturevalue("neo4j_address")
        workspace = Workspace.create(folder / "w", store=address)
        with closing(workspace.open_store()) as store:
            store.clear()
            report = load(folder / "shop", store, workspace=workspace)
        assert report.rows_rejected == 0
        train(workspace, seed=0)
        catalogues = [(place / "digests.json").read_bytes() for place in (demo / "model", workspace.model_folder)]
        assert catalogues[0] == catalogues[1]
        with closing(Workspace.open(demo).open_store()) as one, closing(workspace.open_store()) as other:
            assert one.edges(schema.INTERACTED).equals(other.edges(schema.INTERACTED))
        with Engine.open(workspace.path) as engine:
            engine.launch(launched)
    with (folder / "shop" / "items.jsonl").open(encoding="utf-8") as lines:
        items = {item["item_id"]: item for item in [*map(json.loads, lines), launched]}
    return Job(folder, workspace, replace(tastes, new_items=(*tastes.new_items, launched["item_id"])), items)


@pytest.fixture
def engine(job: Job) -> Iterator[Engine]:
    with Engine.open(job.workspace.path) as engine:
        yield engine


def test_new_items_go_to_those_whose_taste_they_are(job: Job, engine: Engine) -> None:
    """NDCG@10 of the true affinities: far above what a random order of the new items has."""
    discount = 1 / np.log2(np.arange(2, 12))
    random = np.random.default_rng(0)
    ours, chance = [], []
    for user_id, taste in job.tastes.customers.items():
        if user_id not in engine.user_ids:
            continue
        gain = {item_id: taste.affinity(job.items[item_id]) for item_id in job.tastes.new_items}
        ideal = np.sort(list(gain.values()))[::-1][:10] @ discount
        shown = [row.item_id for row in engine.recommend(user_id, k=10, pool="new")]
        assert set(shown) <= set(job.tastes.new_items)
        assert len(shown) == 10
        ours.append(sum(gain[item] * weight for item, weight in zip(shown, discount, strict=True)) / ideal)
        order = random.permutation(list(gain.values()))[:10]
        chance.append(order @ discount / ideal)
    assert np.mean(ours) > np.mean(chance) + 0.2


@pytest.mark.parametrize("new_share", [0.1, 0.5])
def test_new_items_get_the_share_of_the_slots_that_the_shop_sets(job: Job, engine: Engine, new_share: float) -> None:
    """Over all customers about the share; and each of them has the list that a call of their own gives."""
    together = engine.recommend(engine.user_ids, k=10, new_share=new_share)
    assert together.notes == ()
    share = np.mean([row.item_id in job.tastes.new_items for row in together])
    assert share == pytest.approx(new_share, abs=0.02)
    for user_id in engine.user_ids[:5]:
        alone = engine.recommend(user_id, k=10, new_share=new_share)
        expected = [row for row in together if row.user_id == user_id]
        assert [row.item_id for row in alone] == [row.item_id for row in expected]
        assert [row.score for row in alone] == pytest.approx([row.score for row in expected], rel=1e-3)
        assert [row.score for row in alone] == sorted((row.score for row in alone), reverse=True)


def test_every_explanation_is_true_in_the_store(job: Job, engine: Engine) -> None:
    """Each path's edges are there, asked for one by one; the printed Cypher returns the first path among its rows."""
    answer = engine.recommend(engine.user_ids[:25], k=5, pool="new", explain=True)
    assert sum(row.explanation is not None for row in answer) > len(answer) / 2
    edges = {r.type: set(engine.store.edges(r).select("head", "tail").iter_rows()) for r in schema.RELATIONS}
    for row in answer:
        if row.explanation is None:
            continue
        for path in row.explanation.paths:
            assert path.nodes[0].key == row.user_id
            assert path.nodes[-1].key == row.item_id
            for before, edge, after in zip(path.nodes, path.edges, path.nodes[1:], strict=False):
                pair = (before.key, after.key) if edge.forward else (after.key, before.key)
                assert pair in edges[edge.type]
        found = engine.store.run(row.explanation.cypher, row.explanation.parameters)
        first = [node.key for node in row.explanation.paths[0].nodes]
        shown = [[value for name, value in hit.items() if name.endswith("_key")] for hit in found]
        assert first in shown


def test_no_path_means_that_the_store_has_none(job: Job, engine: Engine) -> None:
    answer = engine.recommend(engine.user_ids[:60], k=30, pool="new", explain=True)
    unexplained = [row for row in answer if row.explanation is None]
    for row in unexplained:
        assert all(engine.store.match(path, [str(row.user_id)], [row.item_id]) == [] for path in METAPATHS)


def test_a_launch_is_live_at_once_and_after_a_restart(job: Job) -> None:
    model = job.items[job.tastes.new_items[0]]
    fans = sorted(job.tastes.customers, key=lambda user: -job.tastes.customers[user].affinity(model))[:40]
    with Engine.open(job.workspace.path) as engine:
        launch = engine.launch({**model, "item_id": "launched", "title": model["title"] + " deluxe"}, audience=50)
        assert launch.created
        assert {member.user_id for member in launch.audience} & set(fans)
        assert any(member.explanation for member in launch.audience)
        best = launch.audience[0].user_id
        assert "launched" in {row.item_id for row in engine.recommend(best, k=40, pool="new")}
        before = engine.recommend(best, k=40, pool="new", explain=True)
    with Engine.open(job.workspace.path) as engine:
        after = engine.recommend(best, k=40, pool="new", explain=True)
        assert [row.item_id for row in after] == [row.item_id for row in before]
        assert [row.score for row in after] == pytest.approx([row.score for row in before], rel=1e-4)
        assert model["item_id"] in {row.item_id for row in engine.similar("launched", k=5)}


def test_a_second_ingest_changes_nothing_and_keeps_the_launch(job: Job) -> None:
    with Engine.open(job.workspace.path) as engine:
        engine.launch({"item_id": "kept", "title": "A kept lamp"}, audience=0, neighbours=0)
    for _ in range(2):
        store = job.workspace.open_store()
        report = load(job.folder / "shop", store, workspace=job.workspace)
        store.close()
        assert (report.nodes_added, report.edges_added, report.nodes_updated, report.edges_updated) == (0, 0, 0, 0)
        assert (report.nodes_deleted, report.edges_deleted) == (0, 0)
    with Engine.open(job.workspace.path) as engine:
        assert "kept" in engine.item_ids


def test_all_users_through_the_command_line(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "recs.jsonl"
    asked = ["recommend", "--workspace", str(job.workspace.path), "--all-users", "--pool", "new", "--k", "3"]
    result = CliRunner().invoke(app, [*asked, "--explain", "--output", str(output), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert report["rows"] == len(lines) == 3 * report["users"]
    assert report["share_with_path"] > 0.5
    assert set(lines[0]) >= {"user_id", "item_id", "rank", "score", "source", "explanation"}
    assert [line["rank"] for line in lines[:3]] == [1, 2, 3]
    assert lines[0]["score"] >= lines[1]["score"] >= lines[2]["score"]
