"""``GraphEncoder``: items as vectors from their facts and neighbours in the graph, also items it has never seen."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import spmm

from encoders.content import power_of, put_rows, top_of_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from encoders.content import ItemContent

ENTITIES: Final = ("brands", "categories", "attributes", "topics")
"""Kinds of nodes through which items hear of each other; topics are clusters of the text vectors."""
KERNELS: Final = (("words", 1.5), ("text", 6.0), ("brands", 1.0))
"""(view, power) of the similarities that the user score adds to the encoder's own."""
_MASKED_SHARE: Final = 0.4
_MAX_TARGETS: Final = 800
"""Masked items among which customers are matched in a step; more cost time and taught nothing."""
_N_TOGETHER: Final = 20
_SCALAR_RATE: Final = 3.0
"""Single numbers (gates, sharpness, weights) learn faster than matrices, or they would hardly leave their start."""
_LOG_Q: Final = 0.5
"""Share of log popularity that the softmax explains away: at 1 what content tells of popularity is lost (- .002)."""


class GatedMean(MessagePassing):  # type: ignore[misc]
    """Mean of the neighbours' states, mapped and gated: g · W · mean. The gate is one learned number a relation.

    GInRec (2023) finds such gates to matter more than depth. W starts as the identity and g small, so that training
    begins at the content alone.
    """

    def __init__(self, embedding_size: int) -> None:
        super().__init__(aggr="mean")
        self.weight = nn.Parameter(torch.eye(embedding_size))
        self.gate = nn.Parameter(torch.tensor(0.2))

    def forward(self, adjacency: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """States (n_sources, D) to messages (n_targets, D); ``adjacency`` is CSR, targets × sources."""
        mean: torch.Tensor = self.propagate(adjacency, x=(states, None))
        return self.gate * functional.linear(mean, self.weight)

    def message_and_aggregate(self, edge_index: torch.Tensor, x: tuple[torch.Tensor, None]) -> torch.Tensor:
        """One sparse product; the rows of the adjacency sum to at most 1, so that the sum is the mean."""
        product: torch.Tensor = spmm(edge_index, x[0], reduce="sum")
        return product


class _Network(nn.Module):
    """The learned part: nothing in it belongs to one item, entity or user."""

    def __init__(self, projection: NDArray[np.float32], *, dropout: float) -> None:
        super().__init__()
        size = projection.shape[1]
        self.project = nn.Linear(projection.shape[0], size)
        with torch.no_grad():
            self.project.weight.copy_(torch.from_numpy(projection.T.copy()))
            self.project.bias.zero_()
        self.together = GatedMean(size)
        self.relations = nn.ModuleDict({name: GatedMean(size) for name in ENTITIES})
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.Parameter(torch.zeros(size))
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.kernel_weights = nn.Parameter(torch.full((len(KERNELS),), -1.0))
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def behaviour_states(self, features: torch.Tensor, together: torch.Tensor, behaves: torch.Tensor) -> torch.Tensor:
        """First hop: items hear what is bought with them. Items without behaviour keep their own content."""
        states = self.project(self.dropout(features))
        heard = self.together(together, states * behaves)
        result: torch.Tensor = states + heard * behaves
        return result

    def entity_states(self, states: torch.Tensor, members: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Second hop, first half: an entity is the mean of the items with behaviour around it."""
        return {name: adjacency @ states for name, adjacency in members.items()}

    def vectors(
        self, states: torch.Tensor, entities: dict[str, torch.Tensor], links: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Second hop, second half: items hear their entities. Unit rows."""
        for name, adjacency in links.items():
            states = states + self.relations[name](adjacency, entities[name])
        return functional.normalize(states, dim=1)

    def kernel(self, history: torch.Tensor, candidates: torch.Tensor, views: list[torch.Tensor]) -> torch.Tensor:
        """What one history item says about a candidate: exp(a(cos − 1)) + Σ w · view. Shape (n_history, C)."""
        total = torch.exp(self.sharpness * (history @ candidates.T - 1))
        for weight, view in zip(functional.softplus(self.kernel_weights), views, strict=True):
            total = total + weight * view
        return total


class GraphEncoder:
    """A relation-gated, inductive graph network over products, brands, categories, attributes and text topics.

    Two hops, as in heterogeneous GraphSAGE (Hamilton et al. 2017) with one gate a relation (GInRec 2023):

        s_i = W x_i + g_0 W_0 · mean of s over what is bought with i          (0 for an item without behaviour)
        e   = mean of s_i over the items with behaviour around the entity
        z_i = unit(s_i + Σ_r g_r W_r · mean of e over i's entities of kind r)

    and the user, who has no vector of their own, scores an item by attention over their history (kernel smoothing):

        score = log Σ_i α_i · [exp(a (z_i · z_j − 1)) + Σ_v w_v · similarity_v(i, j)],   α = softmax(attention · z_i)

    It differs from both papers in training: at each step a random two fifths of the items lose all behaviour, and the
    customers of exactly these items are to be found among all of them (softmax over the masked items, with log
    popularity added as sampled softmax's log Q; Bengio and Senécal 2008). So the loss sees items as they are at launch.

    ``vectors`` of items with behaviour hold it; those of new ones are what ``encode_new`` gives.
    """

    def __init__(self, network: _Network, state: dict[str, NDArray[Any]], *, embedding_size: int) -> None:
        self._network = network.eval()
        self._state = state
        self.embedding_size = embedding_size

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Of all items, unit rows, shape (I, D)."""
        return self._state["vectors"]

    @classmethod
    def fit(
        cls,
        content: ItemContent,
        interactions: sparse.csr_array,
        *,
        views: dict[str, sparse.csr_array],
        embedding_size: int = 128,
        n_steps: int | None = None,
        users_a_step: int = 512,
        learning_rate: float = 2e-3,
        dropout: float = 0.2,
        weight_decay: float = 1e-4,
        seed: int = 0,
        device: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> GraphEncoder:
        """Train on users × items.

        Args:
            content: of all I items. Those without interactions are new: they are encoded, never learned from.
            interactions: shape (U, I), binary.
            views: similarity of candidates (rows) to items, for each view in ``KERNELS``. Shapes (I, I).
            embedding_size: D.
            n_steps: optimiser steps; ``None`` takes one for 125 interactions, between 60 and 300.
            users_a_step: customers whose masked items are to be found in a step.
            learning_rate: of AdamW, with a one-cycle schedule.
            dropout: of content features.
            seed: of initial weights, masks and users.
            device: ``cuda``, ``cpu``; ``None`` takes CUDA where there is one.
            progress: called with steps done and in all.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        n_steps = n_steps or int(np.clip(interactions.nnz // 125, 60, 300))
        n_events = np.bincount(interactions.indices, minlength=interactions.shape[1])
        warm = np.flatnonzero(n_events)
        features = content.dense
        network = _Network(_principal(features[warm], embedding_size), dropout=dropout).to(place)
        topics = _topics(content.text, warm, seed)
        graph = _Graph(content, interactions, topics, place)
        scalars = [parameter for parameter in network.parameters() if parameter.numel() <= len(KERNELS)]
        matrices = [parameter for parameter in network.parameters() if parameter.numel() > len(KERNELS)]
        groups = [
            {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay},
            {"params": scalars, "lr": _SCALAR_RATE * learning_rate, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups)
        rates = [learning_rate, _SCALAR_RATE * learning_rate]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=n_steps + 1, pct_start=0.2)
        inputs = torch.from_numpy(features).to(place)
        log_popularity = torch.from_numpy(np.log(np.maximum(n_events, 1)).astype(np.float32)).to(place)
        by_item = sparse.csc_array(interactions)
        for step in range(n_steps):
            network.train()
            masked = rng.choice(warm, max(1, int(len(warm) * _MASKED_SHARE)), replace=False)
            seen = np.zeros(len(features), dtype=np.float32)
            seen[warm] = 1
            seen[masked] = 0
            targets = masked[:_MAX_TARGETS]
            users = np.unique(by_item[:, targets].indices)
            users = rng.permutation(users)[:users_a_step]
            rows = sparse.csr_array(interactions[users])
            history = sparse.csr_array(rows @ sparse.diags_array(seen, format="csr"))
            history.eliminate_zeros()
            known = np.flatnonzero(np.asarray(history.sum(axis=1)).ravel() > 0)
            if not len(known):
                continue
            kept = np.unique(history.indices).astype(np.int64)
            wanted = sparse.csr_array(rows[known][:, targets])
            weights = torch.from_numpy(sparse.csr_array(history[known])[:, kept].toarray()).to(place)
            kernels = [_kernel(views[view], power, targets, kept, place) for view, power in KERNELS]
            behaves = torch.from_numpy(seen).to(place)[:, None]
            states = network.behaviour_states(inputs, graph.together, behaves)
            vectors = network.vectors(states, network.entity_states(states, graph.members(seen)), graph.links)
            scores = _scores(network, vectors[kept], vectors[targets], weights, kernels)
            logits = network.temperature * scores + _LOG_Q * log_popularity[targets]
            positives = torch.from_numpy(wanted.toarray()).to(place)
            positives = positives / positives.sum(dim=1, keepdim=True).sqrt()
            loss = -(functional.log_softmax(logits, dim=1) * positives).sum() / positives.sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, n_steps)
        encoder = cls(network, {}, embedding_size=embedding_size)
        encoder._settle(graph, inputs, (n_events > 0).astype(np.float32), topics)
        return encoder

    def _settle(
        self, graph: _Graph, inputs: torch.Tensor, seen: NDArray[np.float32], topics: NDArray[np.float32]
    ) -> None:
        network = self._network.eval()
        with torch.inference_mode():
            behaves = torch.from_numpy(seen).to(inputs.device)[:, None]
            states = network.behaviour_states(inputs, graph.together, behaves)
            entities = network.entity_states(states, graph.members(seen))
            vectors = network.vectors(states, entities, graph.links)
        self._state = {
            "vectors": vectors.cpu().numpy(),
            "topics": topics,
            **{f"entities.{name}": state.cpu().numpy() for name, state in entities.items()},
        }

    def put(self, content: ItemContent, item_nums: NDArray[np.int64]) -> None:
        """Encode new (or changed) items and append (or replace) their vectors; see ``encode_new``."""
        self._state["vectors"] = put_rows(self.vectors, self.encode_new(content, item_nums), item_nums)

    def encode_new(self, content: ItemContent, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of items that it has never seen, from their facts and the entities that they share. Shape (B, D).

        An item that was in the training graph without behaviour gets the same vector here as there.
        """
        device = self._network.attention.device
        entities = {name: torch.from_numpy(self._state[f"entities.{name}"]).to(device) for name in ENTITIES}
        links = {
            name: _csr(_row_means(_members(content, name, item_nums, self._state["topics"])), device)
            for name in ENTITIES
        }
        with torch.inference_mode():
            states = self._network.project(torch.from_numpy(content.dense[item_nums]).to(device))
            vectors: NDArray[np.float32] = self._network.vectors(states, entities, links).cpu().numpy()
        return vectors

    def attention(self, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        """exp of each item's attention logit: its weight in a history before the weights are made to sum to 1."""
        weight = self._network.attention.detach().cpu().numpy()
        result: NDArray[np.float32] = np.exp(self.vectors[item_nums] @ weight).astype(np.float32)
        return result

    def kernel(
        self, history: NDArray[np.int64], candidates: NDArray[np.int64], views: dict[str, sparse.csr_array]
    ) -> NDArray[np.float32]:
        """What each history item says about each candidate. Shape (n_history, C)."""
        device = self._network.attention.device
        with torch.inference_mode():
            kernels = [_kernel(views[view], power, candidates, history, device) for view, power in KERNELS]
            rows, columns = (torch.from_numpy(self.vectors[nums]).to(device) for nums in (history, candidates))
            kernel: NDArray[np.float32] = self._network.kernel(rows, columns, kernels).cpu().numpy()
        return kernel

    def gates(self) -> dict[str, float]:
        """The learned weight of each relation's message."""
        gates = {name: layer.get_parameter("gate").item() for name, layer in self._network.relations.items()}
        return {"together": self._network.together.gate.item(), **gates}

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``graph.safetensors``."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"state.{name}": np.ascontiguousarray(array) for name, array in self._state.items()}
        for name, tensor in self._network.state_dict().items():
            arrays[f"network.{name}"] = np.ascontiguousarray(tensor.cpu().numpy())
        save_file(arrays, folder / "graph.safetensors")
        (folder / "config.json").write_text(
            json.dumps({"embedding_size": self.embedding_size}) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path, *, device: str | None = None) -> GraphEncoder:
        """Read what ``save`` wrote."""
        from safetensors.numpy import load_file

        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        arrays = load_file(folder / "graph.safetensors")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = {name[8:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("network.")}
        network = _Network(np.zeros(weights["project.weight"].T.shape, dtype=np.float32), dropout=0.0)
        network.load_state_dict(weights)
        state = {name[6:]: array for name, array in arrays.items() if name.startswith("state.")}
        return cls(network.to(place), state, embedding_size=config["embedding_size"])


class _Graph:
    """The adjacencies of a training run; only which items behave changes from step to step."""

    def __init__(
        self,
        content: ItemContent,
        interactions: sparse.csr_array,
        topics: NDArray[np.float32],
        device: torch.device,
    ) -> None:
        nums = np.arange(len(content))
        members = {name: _members(content, name, nums, topics) for name in ENTITIES}
        self._device = device
        self._members = {name: sparse.csr_array(matrix.T) for name, matrix in members.items()}
        self.links = {name: _csr(_row_means(matrix), device) for name, matrix in members.items()}
        self.together = _csr(_together(interactions), device)

    def members(self, seen: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Entities × items, rows averaging over the items that behave now. A weak mean stays weak (+ 1 below)."""
        behaving = sparse.diags_array(seen, format="csr")
        return {name: _csr(_row_means(matrix @ behaving), self._device) for name, matrix in self._members.items()}


def _scores(
    network: _Network,
    history: torch.Tensor,
    candidates: torch.Tensor,
    weights: torch.Tensor,
    kernels: list[torch.Tensor],
) -> torch.Tensor:
    """log Σ α · kernel. ``weights`` is 1 where a user's history holds the item, shape (B, n_history)."""
    attended = weights * torch.exp(history @ network.attention)
    attended = attended / attended.sum(dim=1, keepdim=True)
    return torch.log(attended @ network.kernel(history, candidates, kernels) + 1e-6)


def _kernel(
    view: sparse.csr_array,
    power: float,
    candidates: NDArray[np.int64],
    history: NDArray[np.int64],
    device: torch.device,
) -> torch.Tensor:
    return torch.from_numpy(power_of(view[candidates][:, history], power).toarray().T.copy()).to(device)


def _members(
    content: ItemContent, name: str, item_nums: NDArray[np.int64], topics: NDArray[np.float32]
) -> sparse.csr_array:
    """Items × entities with inverse document frequency as weight. Shape (B, E)."""
    if name != "topics":
        return sparse.csr_array(content.bags[name][item_nums])
    similarity = content.text[item_nums] @ topics.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :2]
    rows = np.repeat(np.arange(len(item_nums)), nearest.shape[1])
    values = np.maximum(np.take_along_axis(similarity, nearest, axis=1).ravel(), 0).astype(np.float32)
    return sparse.csr_array((values, (rows, nearest.ravel())), shape=similarity.shape)


def _topics(text: NDArray[np.float32], warm: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Centres of text clusters, about 30 warm items each, unit rows. Shape (n_topics, D_text)."""
    from sklearn.cluster import MiniBatchKMeans

    n_topics = int(np.clip(len(warm) // 30, 1, 512))
    means = MiniBatchKMeans(n_topics, random_state=seed, n_init=1, batch_size=2048, max_iter=30).fit(text[warm])
    centres = means.cluster_centers_.astype(np.float32)
    return np.asarray(centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _together(interactions: sparse.csr_array) -> sparse.csr_array:
    """Items × items: the strongest steps item → customer → item, rows summing to 1."""
    per_user = np.maximum(interactions.sum(axis=1), 1)
    pairs = sparse.csr_array(interactions.T @ sparse.diags_array(1 / per_user) @ interactions)
    pairs.setdiag(0)
    pairs.eliminate_zeros()
    return _row_means(top_of_rows(pairs, _N_TOGETHER), shrink=0.0)


def _row_means(matrix: sparse.csr_array, shrink: float = 0.5) -> sparse.csr_array:
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1, totals + shrink, out=np.zeros(len(totals)), where=totals > 0)
    return sparse.csr_array(sparse.diags_array(scale) @ matrix, dtype=np.float32)


def _csr(matrix: sparse.csr_array, device: torch.device) -> torch.Tensor:
    matrix = sparse.csr_array(matrix)
    matrix.sort_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )


def _principal(rows: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Principal directions of content as the first projection. Shape (D_in, D); zero columns where there are fewer."""
    vectors = np.linalg.eigh(rows.T @ rows)[1]
    leading = vectors[:, ::-1][:, :size].astype(np.float32)
    return np.pad(leading, ((0, 0), (0, size - leading.shape[1])))
