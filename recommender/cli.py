"""The command line: each command is parse → one public function → print. ``--json`` prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

if TYPE_CHECKING:
    from kg.paths import Path as WalkPath
    from recommender.batch import BatchReport
    from recommender.engine import Engine
    from recommender.results import Explanation

app = typer.Typer(
    name="firstshelf",
    help="Finds the customers, the neighbours and the true reasons for a product that nobody has bought yet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that keeps everything of one shop.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def _lasting(address: str | None) -> str | None:
    if address is not None and address.startswith("memory:"):
        raise typer.BadParameter("memory: ends with this command and keeps nothing; leave it out, or give file:PATH")
    return address


StoreOption = Annotated[
    str | None,
    typer.Option(
        callback=_lasting, help="file:PATH, neo4j://HOST:PORT, bolt://HOST:PORT; embedded in the workspace by default."
    ),
]
_INTERRUPTED: Final = 130
"""The exit code that typer makes of Ctrl-C, as shells do."""
SeedOption = Annotated[int, typer.Option(help="Of all random choices: the same data and seed give the same model.")]


@app.command()
def demo(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where to make the demo shop.")] = Path(
        "demo.workspace"
    ),
    store: StoreOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run the whole job on a small generated shop, then say what to try next."""
    from recommender.demo import run_demo

    with _stages(quiet=as_json) as progress:
        report = run_demo(workspace, store=store, seed=seed, progress=progress)
    if as_json:
        return _print_json(report.to_json())
    shop = report.train
    _say(f"\nA shop of {shop.n_items} products, {shop.n_new_items} of them new, and {shop.n_users} customers,")
    _say(f"trained in {report.train.seconds:.0f} s. New products for {report.recommendations[0].user_id}:\n")
    for row in report.recommendations:
        _say(f"{row.rank:>3}. {row.title}  [{row.item_id}]  score {row.score:.3f}")
        _print_explanation(row.explanation, indent="     ")
    launch = report.launch
    _say(f"\nLaunched {launch.item_id} in {launch.seconds * 1000:.0f} ms, without retraining. It is for:")
    for member in launch.audience[:3]:
        _say(f"  {member.user_id}")
        _print_explanation(member.explanation, indent="     ")
    _say(f"\nThe whole job took {report.seconds:.0f} s. Try next:")
    for command in report.next_commands:
        _say(f"  {command}")
    return None


@app.command()
def ingest(
    folder: Annotated[Path, typer.Argument(help="Shop folder: items.*, events.*, and RDF files beside them.")],
    workspace: WorkspaceOption,
    store: StoreOption = None,
    mapping: Annotated[Path | None, typer.Option(help="JSON file that names the columns of another layout.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Load a shop folder into the knowledge graph. Twice gives the same graph as once."""
    from ingest import load
    from ingest.files import find_files
    from kg import Workspace

    find_files(folder, mapping)  # a folder that cannot be read leaves no workspace behind
    place = Workspace.create(workspace, store=store)
    graph_store = place.open_store()
    try:
        report = load(folder, graph_store, workspace=place, mapping=mapping, progress=not as_json)
    finally:
        graph_store.close()
    for note in report.notes:
        _warn(note)
    if as_json:
        return _print_json(report.to_json())
    _say(
        f"{report.rows_read:,} rows read, {report.rows_accepted:,} accepted, {report.rows_rejected:,} rejected"
        f" in {report.seconds:.1f} s"
    )
    for reason, count in sorted(report.reasons.items()):
        _say(f"  {count:,} × {reason}")
    if report.rows_rejected:
        _say(f"  each rejected row: {report.rejects_file}")
    added = f"{report.nodes_added:,} nodes and {report.edges_added:,} edges added"
    updated = f"{report.nodes_updated:,} and {report.edges_updated:,} updated"
    _say(f"graph: {added}, {updated}; content hash {report.content_hash}")
    return None


@app.command()
def train(
    workspace: WorkspaceOption,
    text_model: Annotated[
        str | None, typer.Option(help="Name or path of a sentence-transformers model; the packaged MiniLM by default.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train the text encoder, the graph encoder and the fusion on a loaded workspace."""
    from kg import Workspace
    from recommender.training import train as run

    with _stages(quiet=as_json) as progress:
        report = run(Workspace.open(workspace), text_model=text_model, seed=seed, progress=progress)
    for note in report.notes:
        _warn(note)
    if as_json:
        return _print_json(report.to_json())
    _say(
        f"trained on {report.n_items:,} items ({report.n_new_items:,} new), {report.n_users:,} customers, "
        f"{report.n_interactions:,} interactions in {report.seconds:.0f} s; {report.similar_edges:,} SIMILAR_TO edges"
    )
    for name, value in report.metrics.items():
        if isinstance(value, float):
            _say(f"  {name}: {value:.4f}")
    return None


@app.command()
def recommend(
    workspace: WorkspaceOption,
    user: Annotated[list[str] | None, typer.Option(help="A customer; may be given several times.")] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every customer.")] = False,
    users_file: Annotated[Path | None, typer.Option(help="UTF-8 text, one customer id per line.")] = None,
    history: Annotated[
        list[str] | None, typer.Option(help="An item of a bare history, instead of users; several times, oldest first.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="List length.")] = 20,
    pool: Annotated[Literal["new", "all"], typer.Option(help="new: only items without any interaction.")] = "all",
    new_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of new items in the slots of all customers, for pool all.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Add verified paths.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write one JSON object a line to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend new (or all) items to one customer, to many, or for a bare history."""
    from recommender.batch import recommend_to_file

    if sum([bool(user), all_users, users_file is not None, bool(history)]) != 1:
        raise typer.BadParameter("give exactly one of --user, --all-users, --users-file, --history")
    if output is not None and history:
        raise typer.BadParameter("--output takes users; leave --history out")
    if new_share is not None and pool == "new":
        raise typer.BadParameter("--new-share is for --pool all; with --pool new every item is new")
    named = _user_ids(users_file) if users_file is not None else list(dict.fromkeys(user or ()))
    with _opened(workspace, quiet=as_json) as engine:
        user_ids = engine.user_ids if all_users else named
        if output is not None:
            with _stages(quiet=as_json) as progress:
                report = recommend_to_file(
                    engine, user_ids, output, k=k, pool=pool, explain=explain, new_share=new_share, progress=progress
                )
            return _print_batch(report, as_json=as_json)
        asked = {"history": history} if history else {"users": user_ids}
        answer = engine.recommend(**asked, k=k, pool=pool, explain=explain, new_share=new_share)
    if as_json:
        return _print_json({"recommendations": answer.to_json(), "notes": list(answer.notes)})
    for note in answer.notes:
        _warn(note)
    for row in answer:
        if row.rank == 1:
            _say(f"\n{row.user_id or 'this history'}  ({row.source})")
        _say(f"{row.rank:>3}. {row.title}  [{row.item_id}]  score {row.score:.3f}")
        if explain:
            _print_explanation(row.explanation, indent="     ")
    return None


def _print_batch(report: BatchReport, *, as_json: bool) -> None:
    if as_json:
        return _print_json(report.to_json())
    for note in report.notes:
        _warn(note)
    share = "" if report.share_with_path is None else f", {report.share_with_path:.1%} with a verified path"
    written = f"{report.rows:,} recommendations for {report.users:,} customers in {report.seconds:.1f} s"
    _say(f"{written}{share}: {report.output}")
    return None


@app.command()
def launch(
    item: Annotated[Path, typer.Argument(help="JSON file with one item: item_id, title, brand, category_path …")],
    workspace: WorkspaceOption,
    audience: Annotated[int, typer.Option(min=0, help="Customers to name.")] = 10,
    neighbours: Annotated[int, typer.Option(min=0, help="Neighbours to name.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Put a new product live at once: its audience, its neighbours, the paths."""
    from kg.errors import SourceError

    try:
        fields = json.loads(item.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{str(item)!r} is not a readable JSON file ({error}); give one JSON object with an item_id"
        ) from error
    with _opened(workspace, quiet=as_json) as engine:
        report = engine.launch(fields, audience=audience, neighbours=neighbours)
    for note in report.notes:
        _warn(note)
    if as_json:
        return _print_json(report.to_json())
    _say(f"{'launched' if report.created else 'updated'} {report.item_id} in {report.seconds * 1000:.0f} ms")
    _say("\nIt is for:")
    for member in report.audience:
        _say(f"{member.rank:>3}. {member.user_id}  score {member.score:.3f}")
        _print_explanation(member.explanation, indent="     ")
    _say("\nIt belongs beside:")
    for row in report.neighbours:
        _say(f"  {row.title}  [{row.item_id}]  {row.score:.3f}{'  new' if row.cold else ''}")
    return None


@app.command()
def audience(
    item_id: Annotated[str, typer.Argument(help="The product.")],
    workspace: WorkspaceOption,
    k: Annotated[int, typer.Option(min=1, help="How many customers.")] = 20,
    explain: Annotated[bool, typer.Option("--explain", help="Add verified paths.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Name the customers for whom a product is most of a find."""
    with _opened(workspace, quiet=as_json) as engine:
        report = engine.audience_for(item_id, k=k, explain=explain)
    if as_json:
        return _print_json(report.to_json())
    if not report:
        _warn("nobody is left to name: every customer with a history has the product already")
    for member in report:
        _say(f"{member.rank:>4}. {member.user_id}  score {member.score:.3f}")
        if explain:
            _print_explanation(member.explanation, indent="      ")
    return None


@app.command()
def similar(
    item_id: Annotated[str, typer.Argument(help="The product.")],
    workspace: WorkspaceOption,
    k: Annotated[int, typer.Option(min=1, help="How many products.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Name the products that a product belongs beside."""
    with _opened(workspace, quiet=as_json) as engine:
        report = engine.similar(item_id, k=k)
    if as_json:
        return _print_json(report.to_json())
    if not report:
        _warn("no product has anything in common with it")
    for row in report:
        _say(f"  {row.title}  [{row.item_id}]  {row.score:.3f}{'  new' if row.cold else ''}")
    return None


@app.command()
def explain(
    user_id: Annotated[str, typer.Argument(help="The customer.")],
    item_id: Annotated[str, typer.Argument(help="The product.")],
    workspace: WorkspaceOption,
    paths: Annotated[int, typer.Option(min=1, help="At most so many paths.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Say why a product is for a customer: sentence, paths, and the Cypher that shows them."""
    from kg.cypher import browser_parameters

    with _opened(workspace, quiet=as_json) as engine:
        explanation = engine.explain(user_id, item_id, n_paths=paths)
    if as_json:
        answer = None if explanation is None else explanation.to_json()
        return _print_json({"user_id": user_id, "item_id": item_id, "explanation": answer})
    _print_explanation(explanation, indent="")
    if explanation is not None:
        _say("\nTo see it in Neo4j Browser:\n")
        _say(f"{browser_parameters(explanation.parameters)}\n")
        _say(explanation.cypher)
        _say(f"\nverified: {str(explanation.verified).lower()}  at {explanation.checked_at}")
    return None


@app.command()
def evaluate(
    workspace: WorkspaceOption,
    protocol: Annotated[
        Literal["items", "time"], typer.Option(help="items: hide a fifth of the items. time: hide all after a cut.")
    ] = "items",
    cut: Annotated[
        str | None, typer.Option(help="ISO date, for --protocol time; chosen from the data by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many splits, each trained from scratch.")] = 1,
    k: Annotated[int, typer.Option(min=1, help="List length.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Measure on your own data how well new items are recommended, beside simple methods."""
    from kg import Workspace
    from recommender.evaluation import evaluate as run

    if cut is not None and protocol != "time":
        raise typer.BadParameter("--cut is for --protocol time")
    with _stages(quiet=as_json) as progress:
        evaluation = run(
            Workspace.open(workspace), protocol=protocol, cut=cut, seeds=range(seeds), k=k, progress=progress
        )
    if as_json:
        return _print_json(evaluation.to_json())
    return _say(str(evaluation))


@app.command()
def doctor(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="Leave it out to check the installation alone.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the installation, and a workspace: store, graph, model; exit with 1 where something is wrong."""
    from recommender.doctor import examine

    report = examine(workspace)
    if as_json:
        _print_json(report.to_json())
    else:
        for check in report.checks:
            _say(f"{'ok  ' if check.ok else 'BAD '} {check.name}: {check.detail}")
    if not report.ok:
        raise typer.Exit(1)


def _user_ids(file: Path) -> list[str]:
    """The ids of a file, each once, in its order."""
    from kg.errors import SourceError

    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"users file {str(file)!r} cannot be read ({error}); give UTF-8 text, one id per line"
        ) from error
    given = [line.strip() for line in lines if line.strip()]
    if not given:
        raise SourceError(f"users file {str(file)!r} holds no id; give UTF-8 text, one id per line")
    user_ids = list(dict.fromkeys(given))
    if len(user_ids) < len(given):
        _warn(f"{len(given) - len(user_ids)} lines of {str(file)!r} repeat an id; each customer gets one list")
    return user_ids


def _print_json(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer, ensure_ascii=False, default=str) + "\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _warn(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")


def _print_explanation(explanation: Explanation | None, *, indent: str) -> None:
    if explanation is None:
        return _say(f"{indent}no path: nothing in the graph joins this history and this item")
    _say(f"{indent}{explanation.sentence}  (verified)")
    for path in explanation.paths:
        _say(f"{indent}{draw(path)}")
    return None


def draw(path: WalkPath) -> str:
    """A path on one line: ``(u1) ─INTERACTED→ (Glue) ─MADE_BY→ (Gorilla) ←MADE_BY─ (Tape)``."""
    parts = [f"({path.nodes[0].name})"]
    for edge, node in zip(path.edges, path.nodes[1:], strict=True):
        name = node.name if len(node.name) <= 48 else node.name[:47] + "…"
        parts.append(f"─{edge.type}→" if edge.forward else f"←{edge.type}─")
        parts.append(f"({name})")
    return " ".join(parts)


def _opened(workspace: Path, *, quiet: bool) -> Engine:
    """The engine; items that were ingested after training are read first, and that may take minutes."""
    from recommender import Engine

    with _stages(quiet=quiet) as progress:
        return Engine.open(workspace, progress=progress)


@contextmanager
def _stages(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr: bars, one per stage; a line per finished stage where it is no terminal.

    Nothing with ``--json``.
    """
    if quiet:
        yield lambda stage, done, total: None
        return
    if not sys.stderr.isatty():
        yield lambda stage, done, total: _print_done(stage) if done >= total else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _print_done(stage: str) -> None:
    sys.stderr.write(f"{stage}: done\n")


def main() -> None:
    """Entry point: a clear error on stderr and exit code 1, never a traceback (``FIRSTSHELF_DEBUG=1`` shows it)."""
    # Read by transformers when it is imported: its own bars would break into ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            sys.stderr.write("interrupted; run the same command again to go on\n")
        raise
    except Exception as error:  # the last door: users get a sentence, developers ask for the traceback
        from kg.errors import FirstshelfError

        if os.environ.get("FIRSTSHELF_DEBUG"):
            raise
        if isinstance(error, FirstshelfError):
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        elif isinstance(error, OSError) and error.filename is not None:
            what = f"{str(error.filename)!r} cannot be read or written: {error.strerror}"
            sys.stderr.write(f"{type(error).__name__}: {what}; check the path, its owner and the space left\n")
        else:
            sys.stderr.write(f"unexpected {type(error).__name__}: {error}. FIRSTSHELF_DEBUG=1 shows where.\n")
        sys.exit(1)
