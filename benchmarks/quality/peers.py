"""Peers: recommenders that others use today, from their own packages, tuned as the other baselines are.

Their packages want older libraries than firstshelf, so that each fit is a process in an environment of its own, which
``make peers`` makes; ``peer_fit.py`` is what runs there. What is not read by a package is not given to it: LightFM has
the catalogue's facts and the words of titles, KGIN the facts, the others have behaviour alone. RecBole's KGAT is not
here: it asks for a dgl before 0.9, of which there is no package for Python 3.11.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from baselines import Fitted, Scorer, _dense, _entities, _needs_groups, _tuned_on_pairs, tuned
from cases import facts
from peer_fit import csr_arrays, csr_matrix
from scipy import sparse

if TYPE_CHECKING:
    from cases import Case
    from numpy.typing import NDArray

PYTHON: Final = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
_FIT: Final = Path(__file__).resolve().with_name("peer_fit.py")


def implicit_als(case: Case) -> Fitted:
    """iALS (Hu, Koren and Volinsky 2008) of implicit. Knows nothing of new items."""
    grid = _grid(factors=(32, 128), alpha=(1.0, 10.0, 40.0), regularization=(0.1, 5.0))
    return _tuned_warm(case, "als", grid)


def implicit_bm25(case: Case) -> Fitted:
    """Item–item neighbours by BM25 of implicit. Knows nothing of new items."""
    return _tuned_warm(case, "bm25", _grid(K=(20, 100, 400), B=(0.2, 0.75)))


def lightfm(case: Case) -> Fitted:
    """LightFM (Kula 2015) with WARP, as RecTools ships it; tuned on pseudo-cold items, so for new ones."""

    def make(**settings: Any) -> Callable[[Case], Scorer]:
        return lambda case: _fit(case, "lightfm", settings)

    sizes = ((64, 30), (64, 100), (128, 30))
    return tuned(case, make, [{"no_components": size, "epochs": epochs, "words": 0.6} for size, epochs in sizes])


def kgin(case: Case) -> Fitted:
    """KGIN (Wang et al. 2021) of RecBole over the catalogue's facts; for items with events."""
    _needs_groups(case)
    return _tuned_warm(case, "kgin", _grid(epochs=(20, 60), learning_rate=(5e-3,), train_batch_size=(4096,)))


PEERS: Final = {method.__name__: method for method in (implicit_als, implicit_bm25, lightfm, kgin)}


def _tuned_warm(case: Case, peer: str, grid: Iterable[dict[str, Any]]) -> Fitted:
    chosen = _tuned_on_pairs(case, lambda inner, settings: _fit(inner, peer, settings), grid)
    return Fitted(_fit(case, peer, chosen), chosen)


def _grid(**values: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, setting, strict=True)) for setting in product(*values.values())]


def _triples(case: Case) -> NDArray[np.int64]:
    """Item, relation and entity of every fact of the catalogue. Shape (3, F)."""
    relations: dict[str, int] = {}
    entities: dict[str, int] = {}
    triples = [
        (num, relations.setdefault(fact.partition(" ")[0], len(relations)), entities.setdefault(fact, len(entities)))
        for num, item in enumerate(case.items)
        for fact in facts(item)
    ]
    return np.array(triples, dtype=np.int64).reshape(-1, 3).T


def _fit(case: Case, peer: str, settings: dict[str, Any]) -> Scorer:
    """Fit in the peers' environment.

    Raises:
        RuntimeError: there is none, or the fit failed; the message ends with what it wrote to stderr.
    """
    if not PYTHON.exists():
        raise RuntimeError(f"no environment of the peers at {str(PYTHON.parents[1])!r}; run 'make peers'")
    features = _entities(case, settings.get("words", 0.0))
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        matrices = {**csr_arrays("train", case.train), **csr_arrays("features", features)}
        np.savez(given, seed=case.seed, facts=_triples(case), **matrices)
        command = [str(PYTHON), str(_FIT), peer, str(given), str(found), json.dumps(settings)]
        # Our own packages lie on PYTHONPATH when the benchmarks run from a checkout: none of the peers' business.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
        with np.load(found) as arrays:
            if "users" in arrays:
                users, items = arrays["users"], arrays["items"]
                return lambda rows, columns: np.asarray(users[rows] @ items[columns].T, dtype=np.float32)
            similarity = sparse.csr_array(csr_matrix(arrays, "similarity"), dtype=np.float32)
    return lambda rows, columns: _dense(case.train[rows] @ similarity[:, columns])
