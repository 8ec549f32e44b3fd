"""GCE-GNN: global context enhanced graph neural network (Wang et al., SIGIR 2020), on packed session graphs.

Two kinds of item embedding are added up: one from the session's graph with four kinds of edges (eq. 7-9), one from the items that were
clicked near the item in any training session (eq. 2-6). Positions are counted from the end of the session (eq. 10-13).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.dropout import Dropout
from recbole_llm4sbr.model.session_graphs import PackedGraph, packed_graph, softmax_by, typed_edges
from recbole_llm4sbr.model.training_graphs import cooccurrence, training_sessions

_PIECE = 400_000  # numbers of one tensor of neighbours that are worked on at once
_KEPT = 32_000_000  # numbers of such a tensor up to which it is kept for the way back; more are computed again


class GlobalLayer(nn.Module):
    """Session-aware attention over an item's global neighbours (eq. 2-6).

    Args:
        size: numbers per item.
        slope: of the leaky ReLU.
    """

    def __init__(self, size: int, slope: float) -> None:
        super().__init__()
        self.linear_pair = nn.Linear(size + 1, size, bias=False)  # W_1
        self.attend = nn.Linear(size, 1, bias=False)  # q_1
        self.aggregate = nn.Linear(2 * size, size, bias=False)  # W_2
        self._slope = slope

    def forward(self, own: Tensor, table: Tensor, near: Tensor, weights: Tensor, session: Tensor) -> Tensor:
        """New embeddings of R items, [R, H].

        Args:
            own: their embeddings, [R, H].
            table: the embeddings that neighbours have, [M, H].
            near: rows of `table`, [R, S].
            weights: share of co-occurrences of each neighbour, 0 where there is none, [R, S].
            session: what each item's session is about, [R, H].
        """
        with torch.autocast(table.device.type, enabled=False):
            context = _Context.apply(  # type: ignore[no-untyped-call]
                table,
                session.to(table.dtype),
                self.linear_pair.weight,
                self.attend.weight,
                near,
                weights.to(table.dtype),
                self._slope,
            )
        return torch.relu(self.aggregate(torch.cat([own, context.to(own.dtype)], -1)))


class _Context(torch.autograd.Function):
    """Sum of each item's neighbours by attention (eq. 2-4), [R, H]: logits are q_1 leaky_relu(W_1 [session * near ; weight]).

    Taken over pieces of the items that stay in a processor's cache, and with the gradient written by hand: numbers for every neighbour of
    every item are far more than the rest of the model has, and memory would set the pace.

    Args of `apply`:
        table, session, w1, q: [M, H], [R, H], W_1 [H, H + 1] and q_1 [1, H].
        near, weights: [R, S] each.
        slope: of the leaky ReLU.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, session: Tensor, w1: Tensor, q: Tensor, near: Tensor, weights: Tensor, slope: float
    ) -> Tensor:
        context, attention = torch.empty_like(session), torch.empty_like(weights)
        numbers, size = near.numel() * table.size(1), table.size(1)
        keep = numbers <= _KEPT and any(ctx.needs_input_grad)
        pairs = table.new_empty(*near.shape, size) if keep else None
        memory = _scratch(table, near, 3)
        for at in _pieces(near, size):
            rows, product, pair = (each[: len(near[at])] for each in memory)  # [r, S, H]
            pair = pair if pairs is None else pairs[at]
            _fill(rows, product, table, near[at], session[at])
            _pair(product, weights[at], w1, pair)
            logits = linear(torch.ops.aten.leaky_relu.out(pair, slope, out=product), q).squeeze(-1)  # [r, S]
            # The lowest finite number and not -inf, which would make a row without neighbours nan.
            missing = weights[at] <= 0
            share = logits.masked_fill_(missing, torch.finfo(logits.dtype).min).softmax(-1).masked_fill_(missing, 0.0)
            attention[at], context[at] = share, torch.bmm(share.unsqueeze(1), rows).squeeze(1)
        ctx.save_for_backward(table, session, w1, q, near, weights, attention, pairs)
        ctx.slope = slope
        return context

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        table, session, w1, q, near, weights, attention, pairs = ctx.saved_tensors
        by_table, by_session, by_w1, by_q = (torch.zeros_like(each) for each in (table, session, w1, q))
        aten, memory = torch.ops.aten, _scratch(table, near, 4)
        for at in _pieces(near, table.size(1)):
            grad, share = grads[0][at], attention[at]
            rows, product, work, pair = (each[: len(near[at])] for each in memory)  # [r, S, H]
            _fill(rows, product, table, near[at], session[at])
            if pairs is None:
                _pair(product, weights[at], w1, pair)
            else:
                pair = pairs[at]
            by_share = torch.bmm(rows, grad.unsqueeze(2)).squeeze(2)
            by_logit = share * (by_share - (share * by_share).sum(1, keepdim=True))  # [r, S]
            by_q += by_logit.view(1, -1) @ aten.leaky_relu.out(pair, ctx.slope, out=work).flatten(0, 1)
            torch.mul(by_logit.unsqueeze(2), q, out=work)
            by_pair = aten.leaky_relu_backward.grad_input(work, pair, ctx.slope, False, grad_input=work).flatten(
                0, 1
            )  # [r * S, H]
            by_w1[:, :-1] += by_pair.T @ product.flatten(0, 1)
            by_w1[:, -1] += weights[at].reshape(-1) @ by_pair
            torch.mm(by_pair, w1[:, :-1], out=product.flatten(0, 1))  # by the product, from here on
            torch.sum(torch.mul(product, rows, out=work), 1, out=by_session[at])
            product.mul_(session[at].unsqueeze(1)).addcmul_(share.unsqueeze(2), grad.unsqueeze(1))  # by the rows
            by_table.index_add_(0, near[at].flatten(), product.flatten(0, 1))
        return by_table, by_session, by_w1, by_q, None, None, None


def _rows(near: Tensor, size: int) -> int:
    """How many rows of `near` [R, S] are worked on at once, with `size` numbers for each neighbour."""
    return max(1, _PIECE // (near.size(1) * size))


def _pieces(near: Tensor, size: int) -> list[slice]:
    return [slice(start, start + _rows(near, size)) for start in range(0, len(near), _rows(near, size))]


def _scratch(table: Tensor, near: Tensor, count: int) -> list[Tensor]:
    """Memory [r, S, H] that every piece uses again, so that it stays in the cache."""
    size = table.size(1)
    return [table.new_empty(min(len(near), _rows(near, size)), near.size(1), size) for _ in range(count)]


def _fill(rows: Tensor, product: Tensor, table: Tensor, near: Tensor, session: Tensor) -> None:
    """Write the neighbours' embeddings, and those times what the session is about, into `rows` and `product` [r, S, H]."""
    torch.index_select(table, 0, near.flatten(), out=rows.flatten(0, 1))
    torch.mul(rows, session.unsqueeze(1), out=product)


def _pair(product: Tensor, weights: Tensor, w1: Tensor, pair: Tensor) -> None:
    """Write W_1 [x ; w] = W_1' x + w w_1'' of `product` [r, S, H] and `weights` [r, S] into `pair` [r, S, H]."""
    torch.mm(product.flatten(0, 1), w1[:, :-1].T, out=pair.flatten(0, 1))
    pair.addcmul_(weights.unsqueeze(-1), w1[:, -1])


class GCEGNN(SessionRecommender):
    """GCE-GNN. Local: the last click's item in its two contexts (eq. 10); global: the session embedding (eq. 13).

    Args:
        config: reads `embedding_size`, `hop` (1 or 2), `neighbors`, `epsilon`, `leaky_slope`, `dropout_local`, `dropout_global`,
            `MAX_ITEM_LIST_LENGTH` and `data_path`.
        dataset: RecBole's dataset of the training part; the global graph is made of its sessions.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size, self._slope = config["embedding_size"], config["leaky_slope"]
        if config["hop"] not in (1, 2):
            raise ValueError(f"hop={config['hop']} must be 1 or 2")
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.position_embedding = nn.Embedding(config["MAX_ITEM_LIST_LENGTH"], size)
        self.edge_kinds = nn.Parameter(torch.empty(4, size))  # a_r of eq. 7
        self.global_layers = nn.ModuleList(GlobalLayer(size, self._slope) for _ in range(config["hop"]))
        self.linear_place = nn.Linear(2 * size, size)  # W_3, b_3
        self.linear_click = nn.Linear(size, size)  # W_4, b_4
        self.linear_mean = nn.Linear(size, size, bias=False)  # W_5
        self.attend = nn.Linear(size, 1, bias=False)  # q_2
        self.dropout_local, self.dropout_global = Dropout(config["dropout_local"]), Dropout(config["dropout_global"])
        sessions = training_sessions(config, dataset)
        neighbours, weights = cooccurrence(sessions, self.n_items, config["epsilon"], config["neighbors"])
        self.near: Tensor
        self.near_weights: Tensor
        self.register_buffer("near", torch.from_numpy(neighbours), persistent=False)
        self.register_buffer("near_weights", torch.from_numpy(weights), persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def take_cold(self, vectors: Tensor) -> None:
        """Add items that training does not have; they have no neighbours."""
        super().take_cold(vectors)
        more = (0, 0, 0, len(vectors) if self.reads_cold else 0)
        self.near, self.near_weights = nn.functional.pad(self.near, more), nn.functional.pad(self.near_weights, more)

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Local and global embedding."""
        graph = packed_graph(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        own = self.embed(graph.node_item)  # [V, H]
        mean = graph.session_mean(graph.at_clicks(own))  # [B, H]
        in_session = self.dropout_local(self._session_level(graph, own))
        context = self.dropout_global(
            self._in_context(graph.node_item, mean.index_select(0, graph.node_row), len(self.global_layers))
        )
        hidden = in_session + context  # eq. 10
        clicks = graph.at_clicks(hidden)  # [N, H]
        placed = torch.tanh(self.linear_place(torch.cat([clicks, self.position_embedding(graph.click_back)], -1)))  # eq. 11
        about = graph.session_mean(clicks)  # [B, H]
        attention = self.attend(
            torch.sigmoid(self.linear_click(placed) + self.linear_mean(about).index_select(0, graph.click_row))
        )  # eq. 12
        return SessionEmbeddings(hidden[graph.last_node], graph.session_sum(attention * clicks), graph)  # eq. 13

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session embedding itself, [B, H]."""
        return embeddings.global_emb

    def _session_level(self, graph: PackedGraph, own: Tensor) -> Tensor:
        """Attention over the neighbours in the session by kind of edge (eq. 7-9), [V, H]."""
        node, neighbour, kind = typed_edges(graph)
        of_kind = (own * self.edge_kinds.unsqueeze(1)).flatten(0, 1)  # a_r * h_j of every kind and node, [4V, H]
        products = own.index_select(0, node) * of_kind.index_select(0, kind * len(own) + neighbour)  # [E, H]
        attention = softmax_by(leaky_relu(products.sum(-1), self._slope), node, len(own))
        return torch.zeros_like(own).index_add(0, node, attention.unsqueeze(1) * own.index_select(0, neighbour))

    def _in_context(self, items: Tensor, session: Tensor, layers: int) -> Tensor:
        """Embeddings of items [R] after so many layers on the global graph, as seen from their sessions [R, H] (eq. 2-6), [R, H]."""
        if layers == 0:
            values: Tensor = self.item_embedding(items)
            return values
        near, weights = self.near[items], self.near_weights[items]  # [R, S]
        own = self._in_context(items, session, layers - 1)
        if layers == 1:
            return self.global_layers[0](own, self.item_embedding.weight, near, weights, session)  # type: ignore[no-any-return]
        sessions = session.repeat_interleave(near.size(1), 0)  # neighbours are seen from the same session
        table, rows = self._in_context(near.flatten(), sessions, layers - 1), torch.arange(near.numel(), device=near.device)
        return self.global_layers[layers - 1](own, table, rows.view_as(near), weights, session)  # type: ignore[no-any-return]
