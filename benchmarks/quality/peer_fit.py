"""Fit one peer's model, with the Python of the peers' environment: python peer_fit.py PEER IN.npz OUT.npz SETTINGS

``IN.npz`` holds CSR matrices, ``train`` (users × items) and ``features`` (items × features), ``facts`` (3, F) of item,
relation and entity, and a ``seed``; SETTINGS is a JSON object. ``OUT.npz`` gets ``users`` (U, D) and ``items`` (I, D),
whose inner products are the scores, or a CSR matrix ``similarity`` (I, I) of which a history sums the rows. Imports
nothing of firstshelf, which is not there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse


def als(train: Any, features: Any, facts: Any, seed: int, **settings: Any) -> dict[str, Any]:
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(**settings, random_state=seed, use_gpu=False, num_threads=1)
    model.fit(train, show_progress=False)
    return {"users": model.user_factors, "items": model.item_factors}


def bm25(train: Any, features: Any, facts: Any, seed: int, **settings: Any) -> dict[str, Any]:
    from implicit.nearest_neighbours import BM25Recommender

    model = BM25Recommender(**settings, num_threads=1)
    model.fit(train, show_progress=False)
    return csr_arrays("similarity", model.similarity)


def lightfm(
    train: Any, features: Any, facts: Any, seed: int, *, words: float, epochs: int, **settings: Any
) -> dict[str, Any]:
    """Items with events have a vector of their own too; a new item has those of its features alone.

    Rows sum to 1, as the package's own ``Dataset`` makes them.
    """
    from lightfm import LightFM

    n_events = np.bincount(train.indices, minlength=train.shape[1])
    own = sparse.csr_matrix(sparse.diags((n_events > 0).astype(np.float32)))
    weights = np.asarray(features.sum(axis=1)).ravel()
    features = sparse.diags(np.divide(1.0, weights, out=np.zeros_like(weights), where=weights > 0)) @ features
    read = sparse.csr_matrix(sparse.hstack([own, features]))
    read = sparse.csr_matrix(
        sparse.diags(1 / np.maximum(np.asarray(read.sum(axis=1)).ravel(), 1)) @ read, dtype=np.float32
    )
    model = LightFM(**settings, loss="warp", random_state=seed)
    model.fit(sparse.coo_matrix(train), item_features=read, epochs=epochs, num_threads=1)
    _, of_users = model.get_user_representations()
    biases, of_items = model.get_item_representations(read)
    return {
        "users": np.hstack([of_users, np.ones((len(of_users), 1))]),
        "items": np.hstack([of_items, biases[:, None]]),
    }


def kgin(train: Any, features: Any, facts: Any, seed: int, **settings: Any) -> dict[str, Any]:
    """RecBole reads files, so the events and the facts become some. What it drops as it reads scores 0."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    sys.modules["torch_scatter"] = types.ModuleType("torch_scatter")
    sys.modules["torch_scatter"].scatter_mean = _scatter_mean  # type: ignore[attr-defined]  # made above
    users, items = train.nonzero()
    sys.argv = sys.argv[:1]  # RecBole takes what else is there for settings of its own
    with tempfile.TemporaryDirectory() as folder:
        shop = Path(folder) / "shop"
        shop.mkdir()
        _write(shop / "shop.inter", ("user_id", "item_id"), zip(users, items, strict=True))
        _write(shop / "shop.link", ("item_id", "entity_id"), ((item, f"i{item}") for item in np.unique(items)))
        triples = ((f"i{head}", relation, f"e{tail}") for head, relation, tail in facts.T)
        _write(shop / "shop.kg", ("head_id", "relation_id", "tail_id"), triples)
        columns = {"inter": ["user_id", "item_id"], "kg": ["head_id", "relation_id", "tail_id"]}
        options = {
            "data_path": folder,
            "checkpoint_dir": f"{folder}/saved",
            "load_col": {**columns, "link": ["item_id", "entity_id"]},
            "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO", "group_by": None, "mode": "full"},
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "seed": seed,
            **settings,
        }
        config = Config(model="KGIN", dataset="shop", config_dict=options)
        init_seed(seed, True)
        read = create_dataset(config)
        batches, _, _ = data_preparation(config, read)
        model = get_model("KGIN")(config, batches._dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "KGIN")(config, model)
        trainer.fit(batches, valid_data=None, saved=False, verbose=False)
        model.eval()
        with torch.no_grad():
            of_users, of_entities, _ = model.forward()
    found = {}
    for name, field, vectors, n in (
        ("users", "user_id", of_users, train.shape[0]),
        ("items", "item_id", of_entities, train.shape[1]),
    ):
        numbers = read.field2token_id[field]
        rows = [row for row in range(n) if str(row) in numbers]
        found[name] = np.zeros((n, vectors.shape[1]), dtype=np.float32)
        found[name][rows] = vectors[[numbers[str(row)] for row in rows]].numpy()
    return found


def _scatter_mean(src: Any, index: Any, dim_size: int, dim: int) -> Any:
    """What KGIN takes from torch_scatter, which has to be compiled for each torch: means of rows by their index."""
    import torch

    sums = torch.zeros(dim_size, src.shape[1]).index_add(dim, index, src)
    counts = torch.zeros(dim_size, 1).index_add(dim, index, torch.ones(len(index), 1))
    return sums / counts.clamp(min=1)


def _write(file: Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    lines = ["\t".join(f"{column}:token" for column in columns), *("\t".join(map(str, row)) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


PEERS = {fit.__name__: fit for fit in (als, bm25, lightfm, kgin)}


def csr_arrays(name: str, matrix: Any) -> dict[str, Any]:
    parts = {part: getattr(matrix, part) for part in ("data", "indices", "indptr")}
    return {**{f"{name}.{part}": array for part, array in parts.items()}, f"{name}.shape": np.array(matrix.shape)}


def csr_matrix(arrays: Any, name: str) -> Any:
    data, indices, indptr, shape = (arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr", "shape"))
    return sparse.csr_matrix((data, indices, indptr), shape=tuple(shape))


if __name__ == "__main__":
    peer, given, found, settings = sys.argv[1:]
    with np.load(given) as arrays:
        train, features, facts = csr_matrix(arrays, "train"), csr_matrix(arrays, "features"), arrays["facts"]
        np.savez(found, **PEERS[peer](train, features, facts, int(arrays["seed"]), **json.loads(settings)))
