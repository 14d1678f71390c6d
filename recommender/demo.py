"""``firstshelf demo``: the whole job on a small generated shop."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kg import Workspace
from kg.errors import WorkspaceError
from recommender.engine import Engine
from recommender.results import Launch, Recommendations
from recommender.training import Progress, TrainReport, train

if TYPE_CHECKING:
    from ingest import LoadReport

_SHOP = "demo-shop"


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Every step of the demo with its own report."""

    load: LoadReport
    train: TrainReport
    recommendations: Recommendations
    launch: Launch
    seconds: float
    next_commands: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The demo as one JSON object."""
        return {
            "ingest": self.load.to_json(),
            "train": self.train.to_json(),
            "recommendations": self.recommendations.to_json(),
            "launch": self.launch.to_json(),
            "seconds": self.seconds,
            "next_commands": list(self.next_commands),
        }


def run_demo(
    folder: str | Path, *, store: str | None = None, seed: int = 0, progress: Progress | None = None, k: int = 5
) -> DemoReport:
    """Generate a shop, ingest it, train, recommend new items with paths, launch one more product.

    Args:
        folder: the workspace; an earlier demo there is made anew, anything else is left alone with an error.
        store: address of the graph store; embedded by default.
        seed: of the shop and of the training.
        progress: called with the stage, steps done, steps in all.
        k: recommendations shown.
    """
    from ingest import load
    from ingest.generated import generate_shop

    started = time.perf_counter()
    folder = Path(folder)
    if folder.exists():
        if not Workspace.open(folder).get("demo"):
            raise WorkspaceError(f"{str(folder)!r} is a workspace of your own; give the demo another --workspace")
        shutil.rmtree(folder)
    workspace = Workspace.create(folder, store=store)
    workspace.remember(demo=True)
    shop = folder / _SHOP
    generate_shop(shop, seed=seed)
    graph_store = workspace.open_store()
    try:
        load_report = load(shop, graph_store, workspace=workspace)
    finally:
        graph_store.close()
    train_report = train(workspace, seed=seed, progress=progress)
    with Engine.open(folder) as engine:
        user_id = engine.user_ids[0]
        recommendations = engine.recommend(user_id, k=k, pool="new", explain=True)
        launch = engine.launch(new_product(shop), audience=10, neighbours=5)
    first = recommendations[0]
    return DemoReport(
        load_report,
        train_report,
        recommendations,
        launch,
        round(time.perf_counter() - started, 1),
        (
            f"firstshelf recommend --workspace {folder} --user {user_id} --pool new --explain",
            f"firstshelf explain {user_id} {first.item_id} --workspace {folder}",
            f"firstshelf audience {launch.item_id} --workspace {folder} --explain",
            "firstshelf ingest YOUR_FOLDER --workspace shop.workspace",
        ),
    )


def new_product(shop: Path) -> dict[str, Any]:
    """A product that the shop does not sell yet: a sibling of the last one in its catalogue."""
    with (shop / "items.jsonl").open(encoding="utf-8") as lines:
        *_, last = lines
    item: dict[str, Any] = json.loads(last)
    return {**item, "item_id": "demo-launch", "title": f"{item['title']} (second edition)"}
