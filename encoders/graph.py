"""``GraphEncoder``: items as vectors from their facts and neighbours in the graph, also items it has never seen."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import spmm

from encoders.content import MAX_PAIRED, latest, put_rows, top_of_rows
from encoders.text import bfloat16_is_fast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from encoders.content import ItemContent

ENTITIES: Final = ("brands", "categories", "attributes", "topics")
"""Kinds of nodes through which items hear of each other; topics are clusters of the text vectors."""
N_CHANNELS: Final = 2
"""Of the user score: the history itself, and what is bought with it."""
_N_NEAR: Final = 60
"""Nearest items in each view that make an item's pairs; 200 gave as much."""
_PAIR_SIZE: Final = 32
_PAIR_RATE: Final = 3.0
_MASKED_SHARE: Final = 0.4
_MAX_TARGETS: Final = 500
"""Masked items among which customers are matched in a step: the time of a step grows with them."""
_N_TOGETHER: Final = 50
_SCALAR_RATE: Final = 3.0
"""Single numbers (gates, sharpness, weights) learn faster than matrices, or they would hardly leave their start."""
_FIRST_RATE: Final = 0.04
"""Of the learning rate, from which a fifth of the steps leads up to it."""
_LOG_Q: Final = 0.5
"""Share of log popularity that the softmax explains away: at 1 what content tells of popularity is lost (- .002)."""


class GatedMean(MessagePassing):  # type: ignore[misc]  # torch-geometric has no types
    """Mean of the neighbours' states, mapped and gated: g · W · mean. The gate is one learned number a relation.

    GInRec (2023) finds such gates to matter more than depth. W starts as the identity and g small, so that training
    begins at the content alone.
    """

    def __init__(self, embedding_size: int) -> None:
        super().__init__(aggr="mean")
        # torch-geometric writes ``propagate`` to a file in the temporary folder, in every process, and leaves it there.
        written = getattr(sys.modules.get(type(self).propagate.__module__), "__file__", None)
        if written and Path(written).parent == Path(tempfile.gettempdir()):
            Path(written).unlink(missing_ok=True)
        self.weight = nn.Parameter(torch.eye(embedding_size))
        self.gate = nn.Parameter(torch.tensor(0.2))

    def forward(self, adjacency: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """States (n_sources, D) to messages (n_targets, D); ``adjacency`` is CSR, targets × sources.

        The map comes before the mean, which is linear too: there are fewer entities than items.
        """
        mean: torch.Tensor = self.propagate(adjacency, x=(functional.linear(states, self.weight), None))
        return self.gate * mean

    def message_and_aggregate(self, edge_index: torch.Tensor, x: tuple[torch.Tensor, None]) -> torch.Tensor:
        """One sparse product; the rows of the adjacency sum to at most 1, so that the sum is the mean."""
        product: torch.Tensor = spmm(edge_index, x[0], reduce="sum")
        return product


class Pairs:
    """Pairs of a candidate with the items near it in any view, and what the views say about each pair.

    Attributes:
        starts: where each candidate's pairs begin and the last one's end, shape (C + 1,).
        others: the other item's num, shape (P,).
        features: for each view the similarity, and its share of the candidate's largest one, shape (P, 2 V), float16.
    """

    def __init__(self, views: Mapping[str, sparse.csr_array]) -> None:
        """``views`` hold similarities of candidates (rows) to items, shapes (C, I), 0 where unknown."""
        near = [top_of_rows(view, _N_NEAR) for view in views.values()]
        union = sparse.csr_array(sum(near[1:], near[0]))
        union.sort_indices()
        rows = np.repeat(np.arange(union.shape[0]), np.diff(union.indptr))
        columns = []
        for view in views.values():
            values = _entries(view, rows, union.indices.astype(np.int64))
            largest = np.zeros(union.shape[0], dtype=np.float32)
            np.maximum.at(largest, rows, values)
            columns += [values, values / np.maximum(largest[rows], 1e-3)]
        self.starts = union.indptr.astype(np.int64)
        self.others = union.indices.astype(np.int64)
        self.features = np.stack(columns, axis=1).astype(np.float16)

    def of(self, rows: NDArray[np.int64], allowed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of some candidates with allowed items: the place in ``rows``, and the pair's number. Shapes (P',)."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        before = np.cumsum(lengths) - lengths
        numbers = np.repeat(self.starts[rows] - before, lengths) + np.arange(int(lengths.sum()))
        kept = allowed[self.others[numbers]]
        return np.repeat(np.arange(len(rows)), lengths)[kept], numbers[kept]


def _entries(view: sparse.csr_array, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values of a matrix at some places, 0 where it has none. Shape (P,)."""
    view = sparse.csr_array(view)
    view.sort_indices()
    if not view.nnz:
        return np.zeros(len(rows), dtype=np.float32)
    n_columns = np.int64(view.shape[1])
    held = np.repeat(np.arange(view.shape[0]), np.diff(view.indptr)) * n_columns + view.indices
    wanted = rows * n_columns + columns
    places = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    return np.where(held[places] == wanted, view.data[places], 0).astype(np.float32)


class _Network(nn.Module):
    """The learned part: nothing in it belongs to one item, entity or user."""

    def __init__(self, projection: torch.Tensor, n_features: int) -> None:
        super().__init__()
        embedding_size, n_inputs = projection.shape
        self.project = nn.Linear(n_inputs, embedding_size)
        with torch.no_grad():
            self.project.weight.copy_(projection)
            self.project.bias.zero_()
        self.together = GatedMean(embedding_size)
        self.relations = nn.ModuleDict({name: GatedMean(embedding_size) for name in ENTITIES})
        self.attention = nn.Parameter(torch.zeros(embedding_size))
        self.sharpness = nn.Parameter(torch.full((N_CHANNELS,), 8.0))
        self.level = nn.Parameter(torch.zeros(N_CHANNELS))
        self.mix = nn.Parameter(torch.zeros(N_CHANNELS))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.pairs = nn.Sequential(
            nn.Linear(n_features + 2, _PAIR_SIZE),
            nn.GELU(),
            nn.Linear(_PAIR_SIZE, _PAIR_SIZE),
            nn.GELU(),
            nn.Linear(_PAIR_SIZE, N_CHANNELS),
        )
        with torch.no_grad():
            self.pairs[-1].get_parameter("bias").fill_(-1.0)

    def forward(self, features: torch.Tensor, graph: _Adjacencies) -> torch.Tensor:
        """Vectors of the items of a graph from their content. Unit rows."""
        states = self.behaviour_states(features, graph)
        return self.vectors(states, self.entity_states(states, graph), graph.links)

    def behaviour_states(self, features: torch.Tensor, graph: _Adjacencies) -> torch.Tensor:
        """First hop: items hear what is bought with them. Items without behaviour keep their own content."""
        with self._halved():
            states = self.project(features).float()
        heard = self.together(graph.together, states * graph.behaves)
        result: torch.Tensor = states + heard * graph.behaves
        return result

    def entity_states(self, states: torch.Tensor, graph: _Adjacencies) -> dict[str, torch.Tensor]:
        """Second hop, first half: an entity is the mean of the items with behaviour around it."""
        return {name: adjacency @ states for name, adjacency in graph.members.items()}

    def vectors(
        self, states: torch.Tensor, entities: dict[str, torch.Tensor], links: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Second hop, second half: items hear their entities. Unit rows."""
        for name, adjacency in links.items():
            states = states + self.relations[name](adjacency, entities[name])
        return functional.normalize(states, dim=1)

    def _halved(self) -> torch.autocast:
        """In training, dense products in bfloat16 where the device is fast at them: a sixth of a step's time less."""
        device = self.attention.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.training and bfloat16_is_fast(device))

    def kernels(
        self,
        others: torch.Tensor,
        candidates: torch.Tensor,
        place: tuple[torch.Tensor, torch.Tensor],
        features: torch.Tensor,
    ) -> list[torch.Tensor]:
        """What other items say about candidates, one matrix a channel, weighted by attention.

        Args:
            others: vectors, shape (n, D).
            candidates: vectors, shape (C, D).
            place: rows and columns of the near pairs, shapes (P,).
            features: of the near pairs, shape (P, F).

        Returns:
            Matrices of shape (n, C).
        """
        with self._halved():
            cosines = (others @ candidates.T).float()
            said = self.pairs(torch.cat([features, cosines[place][:, None]], dim=1)).float().clamp(max=10)
        attention = others @ self.attention
        # Attention as a summand in the exponent saves passes over others × candidates.
        said = torch.exp(said + attention[place[0]][:, None])
        levels = attention[:, None] + self.level - self.sharpness
        return [
            torch.addcmul(levels[:, channel, None], cosines, self.sharpness[channel])
            .exp()
            .index_put(place, said[:, channel], accumulate=True)
            for channel in range(N_CHANNELS)
        ]


class GraphEncoder:
    """A relation-gated, inductive graph network over products, brands, categories, attributes and text topics.

    Two hops, as in heterogeneous GraphSAGE (Hamilton et al. 2017) with one gate a relation (GInRec 2023):

        s_i = W x_i + g_0 W_0 · mean of s over what is bought with i          (0 for an item without behaviour)
        e   = mean of s_i over the items with behaviour around the entity
        z_i = unit(s_i + Σ_r g_r W_r · mean of e over i's entities of kind r)

    and the user, who has no vector of their own, scores an item by kernels over two channels, their history and what
    is bought with it (one step of ``together``, T):

        k_c(i, j) = α_i · [exp(a_c (z_i · z_j − 1) + b_c) + exp(MLP_c(x_ij, z_i · z_j)) where j is near i in some view]
        score     = log Σ_c m_c · Σ_i w_c,i · k_c(i, j) / Σ_i w_c,i · α_i,   w_1 = history, w_2 = history · T

    x_ij is what the views (words, text, brand, category ...) say of the pair, and α_i = exp(attention · z_i). So
    "the same brand and nearly the same words" may weigh other than the sum of both.

    It differs from both papers in training: at each step a random two fifths of the items lose all behaviour, and the
    customers of exactly these items are to be found among all of them (softmax over the masked items, with log
    popularity added as sampled softmax's log Q; Bengio and Senécal 2008). So the loss sees items as they are at launch.

    ``vectors`` of items with behaviour hold it; those of new ones are what ``encode`` gives of their facts.
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
        pairs: Pairs,
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
            interactions: shape (U, I), binary; a row is what one customer took, or what is bought together by anybody.
            pairs: of all items.
            embedding_size: D.
            n_steps: optimiser steps; ``None`` takes one for 150 interactions, between 60 and 200.
            users_a_step: customers whose masked items are to be found in a step.
            learning_rate: of AdamW, reached after a fifth of the steps. What is kept is an exponential average of the
                weights over about the last quarter of the steps (Polyak and Juditsky 1992).
            dropout: of content features.
            seed: of initial weights, masks and users.
            device: ``cuda``, ``cpu``; ``None`` takes CUDA where there is one.
            progress: called with steps done and in all.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        n_steps = n_steps or int(np.clip(interactions.nnz // 150, 60, 200))
        n_events = np.bincount(interactions.indices, minlength=interactions.shape[1])
        warm = np.flatnonzero(n_events)
        start = torch.from_numpy(_principal(content.dense[warm], embedding_size))
        topics = _topics(content.text, warm, seed)
        together = _together(interactions)
        popularity = np.log1p(n_events).astype(np.float32)
        network = _Network(start, pairs.features.shape[1]).to(place)
        optimizer, schedule = _optimizer(network, learning_rate, weight_decay, n_steps)
        average = get_ema_multi_avg_fn(max(0.0, 1 - 4 / n_steps))  # type: ignore[no-untyped-call]  # no types in torch
        averaged = AveragedModel(network, multi_avg_fn=average)
        # New items teach nothing: nobody is matched with them, and nothing hears them. Rows are warm items from here.
        sold = sparse.csr_array(interactions[:, warm])
        sold_together = sparse.csr_array(together[warm][:, warm])
        graph = _Graph(content, warm, sold_together, topics)
        inputs = content.dense[warm] / np.float32(1 - dropout)
        memory = np.empty_like(inputs)
        log_popularity = torch.from_numpy(np.log(n_events[warm]).astype(np.float32)).to(place)
        by_item = sparse.csc_array(sold)
        for step in range(n_steps):
            network.train()
            masked = rng.choice(len(warm), max(1, int(len(warm) * _MASKED_SHARE)), replace=False)
            seen = np.ones(len(warm), dtype=np.float32)
            seen[masked] = 0
            targets = masked[:_MAX_TARGETS]
            # A masked item that is no target is heard by nobody: a third of the work is not done.
            active = np.sort(np.concatenate([np.flatnonzero(seen), targets]))
            users = np.unique(by_item[:, targets].indices)
            users = rng.permutation(users)[:users_a_step]
            rows = sparse.csr_array(sold[users])
            history = sparse.csr_array(rows @ sparse.diags_array(seen, format="csr"))
            history.eliminate_zeros()
            known = np.flatnonzero(np.diff(history.indptr))
            if not len(known):
                continue
            wanted = sparse.csr_array(rows[known][:, targets])
            channels = _channels(sparse.csr_array(history[known]), sold_together, seen)
            dropped = _dropped(inputs, active, dropout, rng, memory).to(place)
            vectors = network(dropped, graph.among(active, seen[active], place))
            heard = np.unique(np.concatenate([channel.indices for channel in channels])).astype(np.int64)
            near = _near(pairs, warm[targets], warm[heard], popularity, place)
            others, candidates = (vectors[np.searchsorted(active, nums)] for nums in (heard, targets))
            kernels = network.kernels(others, candidates, *near)
            totals = torch.exp(others @ network.attention)
            likely = torch.zeros((), device=place)
            for mix, channel, kernel in zip(network.mix, channels, kernels, strict=True):
                weights = _csr(channel[:, heard], place)
                likely = likely + torch.exp(mix) * (weights @ kernel) / (weights @ totals[:, None] + 1e-6)
            scores = torch.log(likely + 1e-6)
            logits = network.temperature * scores + _LOG_Q * log_popularity[targets]
            positives = torch.from_numpy(wanted.toarray()).to(place)
            positives = positives / positives.sum(dim=1, keepdim=True).sqrt()
            loss = -(functional.log_softmax(logits, dim=1) * positives).sum() / positives.sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
            if progress is not None:
                progress(step + 1, n_steps)
        state = {
            "topics": topics,
            "popularity": popularity,
            "together.data": together.data,
            "together.indices": together.indices,
            "together.indptr": together.indptr,
        }
        network.load_state_dict(averaged.module.state_dict())
        encoder = cls(network, state, embedding_size=embedding_size)
        encoder._settle(content, (n_events > 0).astype(np.float32), together, place)
        return encoder

    def _settle(
        self, content: ItemContent, seen: NDArray[np.float32], together: sparse.csr_array, device: torch.device
    ) -> None:
        """Keep the vectors of all items, and of the entities around those that behave (``seen`` is 1, shape (I,))."""
        network = self._network.eval()
        everything = np.arange(len(content))
        graph = _Graph(content, everything, together, self._state["topics"]).among(everything, seen, device)
        inputs = torch.from_numpy(content.dense).to(device)
        with torch.inference_mode():
            states = network.behaviour_states(inputs, graph)
            entities = network.entity_states(states, graph)
            vectors = network.vectors(states, entities, graph.links)
        self._state["vectors"] = vectors.cpu().numpy()
        self._state |= {f"entities.{name}": state.cpu().numpy() for name, state in entities.items()}

    def put(self, content: ItemContent, item_nums: NDArray[np.int64]) -> None:
        """Encode new (or changed) items and append (or replace) their vectors; see ``encode``."""
        self._state["vectors"] = put_rows(self.vectors, self.encode(content, item_nums), item_nums)

    def encode(self, content: ItemContent, item_nums: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of items from their facts, the entities that they share and what is bought with them. Shape (B, D).

        It need not have seen them. One that was in the training graph and has not changed gets the same vector again.
        """
        device = self._network.attention.device
        entities = {name: torch.from_numpy(self._state[f"entities.{name}"]).to(device) for name in ENTITIES}
        links = {
            name: _csr(_row_means(_members(content, name, item_nums, self._state["topics"])), device)
            for name in ENTITIES
        }
        with torch.inference_mode():
            states = self._network.project(torch.from_numpy(content.dense[item_nums]).to(device))
            together = self._together
            known = np.flatnonzero(item_nums < together.shape[0])
            heard = sparse.csr_array(together[item_nums[known]])
            if heard.nnz:
                others = np.unique(heard.indices)
                sources = self._network.project(torch.from_numpy(content.dense[others]).to(device))
                states[known] += self._network.together(_csr(heard[:, others], device), sources)
            found = self._network.vectors(states, entities, links)
        vectors: NDArray[np.float32] = found.cpu().numpy()
        return vectors

    def kernel(
        self, history: NDArray[np.int64], candidates: NDArray[np.int64], views: Mapping[str, sparse.csr_array]
    ) -> HistoryKernel:
        """What histories over some items with behaviour say about candidates.

        Args:
            history: item nums, ascending, shape (H,).
            candidates: item nums, shape (C,).
            views: similarities of the candidates (rows) to all items, shapes (C, I).
        """
        device = self._network.attention.device
        near = _near(Pairs(views), np.arange(len(candidates)), history, self._state["popularity"], device)
        with torch.inference_mode():
            rows, columns = (torch.from_numpy(self.vectors[nums]).to(device) for nums in (history, candidates))
            said, bought = (kernel.cpu().numpy() for kernel in self._network.kernels(rows, columns, *near))
            attention = torch.exp(rows @ self._network.attention).cpu().numpy()
            mix = torch.exp(self._network.mix).cpu().numpy()
        together = self._together[history][:, history]
        return HistoryKernel(mix[0] * said, mix[1] * (together @ bought), attention, together @ attention)

    @property
    def _together(self) -> sparse.csr_array:
        parts = tuple(self._state[f"together.{part}"] for part in ("data", "indices", "indptr"))
        n_items = len(parts[2]) - 1
        return sparse.csr_array(parts, shape=(n_items, n_items))

    @property
    def fingerprint(self) -> str:
        """Changes with the learned weights."""
        digest = hashlib.blake2b(digest_size=8)
        for _, tensor in sorted(self._network.state_dict().items()):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

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
        n_features = weights["pairs.0.weight"].shape[1] - 2
        network = _Network(weights["project.weight"], n_features)
        network.load_state_dict(weights)
        state = {name[6:]: array for name, array in arrays.items() if name.startswith("state.")}
        return cls(network.to(place), state, embedding_size=config["embedding_size"])


@dataclass(frozen=True, slots=True, eq=False)
class HistoryKernel:
    """The user score's matrices for H items of histories and C candidates, made once for many users.

    Attributes:
        said: of the history itself, shape (H, C).
        bought: of what is bought with it, shape (H, C).
        said_total, bought_total: the attention that each item brings, shapes (H,).
    """

    said: NDArray[np.float32]
    bought: NDArray[np.float32]
    said_total: NDArray[np.float32]
    bought_total: NDArray[np.float32]

    def score(self, histories: sparse.csr_array) -> NDArray[np.float32]:
        """log of the mixed, attention-weighted kernels. ``histories`` has shape (B, H), the result (B, C)."""
        total = (histories @ self.said) / (histories @ self.said_total + 1e-6)[:, None]
        total += (histories @ self.bought) / (histories @ self.bought_total + 1e-6)[:, None]
        return np.log(total + 1e-6, dtype=np.float32)


def _optimizer(
    network: _Network, learning_rate: float, weight_decay: float, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with one rate a kind of parameter, and how the rates rise. They never fall: the weights are averaged."""
    pairs = list(network.pairs.parameters())
    others = [parameter for name, parameter in network.named_parameters() if not name.startswith("pairs.")]
    scalars = [parameter for parameter in others if parameter.numel() <= N_CHANNELS]
    matrices = [parameter for parameter in others if parameter.numel() > N_CHANNELS]
    rates = [learning_rate, _PAIR_RATE * learning_rate, _SCALAR_RATE * learning_rate]
    groups = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for parameters, rate, decay in zip(
            (matrices, pairs, scalars), rates, (weight_decay, weight_decay, 0.0), strict=True
        )
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=_FIRST_RATE, total_iters=max(1, n_steps // 5))
    return optimizer, schedule


def _dropped(
    inputs: NDArray[np.float32],
    rows: NDArray[np.int64],
    share: float,
    rng: np.random.Generator,
    memory: NDArray[np.float32],
) -> torch.Tensor:
    """Dropout of the content's own columns; rotated to principal directions first, it lost 2 % of NDCG.

    A random byte an entry, into memory that is there: torch's own took a fifth of a training step.

    Args:
        inputs: content, already divided by the share that is kept, shape (I, D).
        rows: of the inputs, those that are wanted, shape (n,).
        share: of the entries that are dropped.
        rng: draws them.
        memory: as large as the inputs; the result lies in it until the next call.
    """
    kept = np.take(inputs, rows, axis=0, out=memory[: len(rows)], mode="clip")  # "raise" would copy once more
    drawn = np.frombuffer(rng.bytes(kept.size), dtype=np.uint8).reshape(kept.shape)
    kept *= drawn >= round(256 * share)
    return torch.from_numpy(kept)


def _channels(
    history: sparse.csr_array, together: sparse.csr_array, seen: NDArray[np.float32]
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """The history, and what is bought with it among the items that behave. Shapes (B, I)."""
    bought = sparse.csr_array(history @ together @ sparse.diags_array(seen, format="csr"))
    bought.eliminate_zeros()
    return history, bought


def _near(
    pairs: Pairs,
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    popularity: NDArray[np.float32],
    device: torch.device,
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Pairs of candidates (``rows`` of the pairs) with other items (nums, ascending): place and features.

    Returns:
        Places in ``others`` and in ``rows``, shapes (P,), and features, shape (P, F).
    """
    allowed = np.zeros(int(pairs.others.max(initial=0)) + 1 + int(others.max(initial=0)), dtype=bool)
    allowed[others] = True
    columns, numbers = pairs.of(rows, allowed)
    nums = pairs.others[numbers]
    features = np.concatenate([pairs.features[numbers], popularity[nums, None] / 3], axis=1, dtype=np.float32)
    place = tuple(torch.from_numpy(part).to(device) for part in (np.searchsorted(others, nums), columns))
    return (place[0], place[1]), torch.from_numpy(features).to(device)


@dataclass(frozen=True, slots=True, eq=False)
class _Adjacencies:
    """Who hears whom, CSR, targets × sources, rows summing to at most 1.

    Attributes:
        behaves: 1 for items with behaviour, shape (n, 1).
        together: items × items.
        members: entities × items, by kind; a weak mean stays weak.
        links: items × entities, by kind.
    """

    behaves: torch.Tensor
    together: torch.Tensor
    members: dict[str, torch.Tensor]
    links: dict[str, torch.Tensor]


class _Graph:
    """The adjacencies of some items, as rows of ``item_nums``."""

    def __init__(
        self,
        content: ItemContent,
        item_nums: NDArray[np.int64],
        together: sparse.csr_array,
        topics: NDArray[np.float32],
    ) -> None:
        members = {name: _members(content, name, item_nums, topics) for name in ENTITIES}
        self._members = {name: sparse.csr_array(matrix.T) for name, matrix in members.items()}
        self._links = {name: _row_means(matrix) for name, matrix in members.items()}
        self._together = together

    def among(self, rows: NDArray[np.int64], seen: NDArray[np.float32], device: torch.device) -> _Adjacencies:
        """Between the items of some rows, as if there were no others; ``seen`` is 1 where one of them behaves."""
        behaving = sparse.diags_array(seen, format="csr")
        return _Adjacencies(
            torch.from_numpy(seen).to(device)[:, None],
            _csr(self._together[rows][:, rows], device),
            {name: _csr(_row_means(matrix[:, rows] @ behaving), device) for name, matrix in self._members.items()},
            {name: _csr(matrix[rows], device) for name, matrix in self._links.items()},
        )


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
    interactions = latest(interactions, MAX_PAIRED)
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
    """Principal directions of content, scaled so that projected rows are of about length 1. Shape (size, D_in).

    Zero rows where there are fewer.
    """
    vectors = np.linalg.eigh(rows.T @ rows)[1]
    leading = vectors[:, ::-1][:, :size].astype(np.float32)
    length = float(np.linalg.norm(rows @ leading, axis=1).mean())
    scaled = leading.T / np.float32(max(length, 1e-6))
    return np.ascontiguousarray(np.pad(scaled, ((0, size - len(scaled)), (0, 0))))
