"""The house rules that a reader relies on, held over the syntax trees of the product's code."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "kg": {"kg"},
    "ingest": {"ingest", "kg"},
    "encoders": {"encoders", "kg"},
    "recommender": {"recommender", "encoders", "ingest", "kg"},
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# Product files without a unit-test twin, each with the reason.
NO_TWIN = {
    "kg/stores/memory.py": "tests/contract runs one class of tests on every store",
    "kg/stores/embedded.py": "tests/contract runs one class of tests on every store",
}

# Importing one of these costs seconds (sentence_transformers 5.8, torch_geometric 3.7, torch 1.3) or half of one.
HEAVY = {
    "datasets",
    "kglite",
    "neo4j",
    "networkx",
    "numba",
    "pandas",
    "polars",
    "pyarrow",
    "rdflib",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "torch",
    "torch_geometric",
    "transformers",
}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_packages(tree):
    """Top-level names of everything that a module imports, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def docstrings(tree):
    """Ids of the string nodes that document something: the first statement of a body, and strings after a statement."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }


def strings(tree):
    """The text of every string that is not documentation; of an f-string, its constant parts."""
    documents = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def called(tree):
    """(dotted name, keyword names) of every call whose function is a plain or dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg for keyword in node.keywords}


def test_there_is_code_to_look_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    forbidden = (set(MAY_IMPORT) | {"tests", "benchmarks"}) - MAY_IMPORT[package]
    assert forbidden.isdisjoint(imported_packages(tree_of(path)))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_relative_imports(path):
    """One way to write an import, and no way around the rule above."""
    assert not [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_that_runs_code_out_of_data(path):
    tree = tree_of(path)
    assert {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}.isdisjoint(
        imported_packages(tree)
    )
    for name, keywords in called(tree):
        assert name not in {"eval", "exec", "__import__", "yaml.load"}, name
        assert name != "torch.load" or "weights_only" in keywords, "torch.load without weights_only unpickles"
        assert not (name.endswith("np.load") and "allow_pickle" in keywords), "np.load with allow_pickle unpickles"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_cypher_is_written_in_one_file(path):
    if path == ROOT / "kg" / "cypher.py":
        return
    for text in strings(tree_of(path)):
        for clause in ("MATCH (", "MERGE (", "UNWIND $", "DETACH DELETE", "CREATE CONSTRAINT"):
            assert clause not in text, f"Cypher outside kg/cypher.py: {text!r}"


def test_cypher_is_found_where_it_should_be():
    """The rule above would hold of an empty house too."""
    assert any("MATCH (" in text for text in strings(tree_of(ROOT / "kg" / "cypher.py")))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_has_its_unit_test_twin(path):
    package, *folders, name = path.relative_to(ROOT).parts
    if name == "__init__.py":
        defined = {node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert defined <= {"__getattr__"}, "a package's front door hands out names, and defines none"
        return
    twin = ROOT / "tests" / "unit" / package / Path(*folders) / f"test_{name}"
    reason = NO_TWIN.get(str(path.relative_to(ROOT)))
    assert twin.exists() != (reason is not None), f"{twin.relative_to(ROOT)} is missing, or has no need of an exception"


def test_exceptions_are_of_files_that_exist():
    assert set(NO_TWIN) <= set(NAMES)
    assert any((ROOT / "tests" / "contract").glob("test_*.py"))


def test_the_command_line_says_hello_without_heavy_imports():
    """``firstshelf --help`` in a fresh interpreter: what it has loaded when it has answered, not how long it took."""
    code = (
        "import json, sys\n"
        "from recommender.cli import main\n"
        "try:\n"
        "    sys.argv = ['firstshelf', '--help']\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "recommend" in done.stdout
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "recommender" in loaded
    assert HEAVY.isdisjoint(loaded), sorted(HEAVY & loaded)
