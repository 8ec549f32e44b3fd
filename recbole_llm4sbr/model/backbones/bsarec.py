"""BSARec: self-attention with an attentive inductive bias (Shin et al., AAAI 2024).

A layer mixes two views of the session: causal self-attention, which smooths, and a frequency rescaler, which keeps the slow part of the
session and scales the rest by a trained beta^2. The Fourier transform is that of the session's own clicks (docs/backbones.md).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention, silu

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.dropout import Dropout

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "relu": relu,
    "swish": silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def slow_waves(length: Tensor, width: int, c: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The waves of the `c` lowest frequencies over each session's clicks: constant, then 1, 2, ... `c // 2` periods in the session.

    They are orthonormal, so that `waves @ waves.mT` is the low-pass filter: what is left of the session when all higher frequencies of
    the discrete Fourier transform of its clicks are set to zero. A frequency that n clicks do not have is a wave of zeros.

    Args:
        length: clicks per session, n, at least 1, [B].
        width: clicks per row with the padding, L.
        c: frequencies kept, counted as the authors do: a wave's sine and cosine count as two, and an even number as the next odd one.

    Returns:
        [B, L, R] with R = 2 (c // 2) + 1; zeros at padding.

    >>> waves = slow_waves(torch.tensor([2, 3]), width=3, c=1)
    >>> (waves @ waves.mT)[0].round(decimals=4).tolist()  # the mean of two clicks, for both of them
    [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    n = length.view(-1, 1, 1)
    place = torch.arange(width, device=length.device).view(1, -1, 1)
    periods = torch.arange(c // 2 + 1, device=length.device)
    angle = (2 * math.pi / n.to(dtype)) * (place * periods % n)  # [B, L, c // 2 + 1]
    alone = (periods == 0) | (2 * periods == n)  # frequencies without a sine: the constant, and clicks that alternate
    there = (place < n) & (2 * periods <= n)
    height = (torch.where(there, torch.where(alone, 1, 2), 0) / n.to(dtype)).sqrt()
    sine = (height * angle.sin()).masked_fill(alone, 0)
    return torch.cat([height * angle.cos(), sine[..., 1:]], -1)


class FrequencyRescaler(nn.Module):
    """The inductive bias: low-pass part + beta^2 x high-pass part, then dropout, the input itself and layer normalisation.

    Args:
        size: numbers per click.
        dropout: of its output.
        eps: of the layer normalisation.
    """

    def __init__(self, size: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.sqrt_beta = nn.Parameter(torch.randn(size))
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(size, eps)

    def forward(self, hidden: Tensor, waves: Tensor) -> Tensor:
        """Rescaled clicks [B, L, H], of `hidden` [B, L, H] and `slow_waves` [B, L, R]."""
        low = waves @ (waves.mT @ hidden)
        out: Tensor = self.norm(self.dropout(low + self.sqrt_beta**2 * (hidden - low)) + hidden)
        return out


class CausalAttention(nn.Module):
    """Multi-head self-attention over the clicks up to each one, then dropout, the input itself and layer normalisation.

    Args:
        size: numbers per click.
        heads: `size` must be a multiple of it.
        attention_dropout, dropout: of the attention and of its output.
        eps: of the layer normalisation.
    """

    def __init__(self, size: int, heads: int, attention_dropout: float, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.query_key_value, self.dense = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(size, eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Clicks in the context of those before them, [B, L, H]; padding stands behind the clicks, so that none of them sees it."""
        parts = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1))  # [B, L, 3, heads, d]
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [B, heads, L, d] each
        share = self.attention_dropout if self.training else 0.0
        context = scaled_dot_product_attention(query, key, value, dropout_p=share, is_causal=True)
        out: Tensor = self.norm(self.dropout(self.dense(context.transpose(1, 2).flatten(2))) + hidden)
        return out


class BSARecLayer(nn.Module):
    """alpha x rescaler + (1 - alpha) x attention, then the point-wise feed-forward network of SASRec.

    Args:
        size: numbers per click.
        config: as in `BSARec`.
    """

    def __init__(self, size: int, config: Any) -> None:
        super().__init__()
        dropout, eps, inner = config["hidden_dropout_prob"], config["layer_norm_eps"], config["inner_size"] or 4 * size
        self.alpha, self.activation = config["alpha"], _ACTIVATIONS[config["hidden_act"]]
        self.rescaler = FrequencyRescaler(size, dropout, eps)
        self.attention = CausalAttention(size, config["n_heads"], config["attn_dropout_prob"], dropout, eps)
        self.inner, self.outer = nn.Linear(size, inner), nn.Linear(inner, size)
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(size, eps)

    def forward(self, hidden: Tensor, waves: Tensor) -> Tensor:
        """Clicks after the layer [B, L, H], of `hidden` [B, L, H] and `slow_waves` [B, L, R]."""
        mixed = self.alpha * self.rescaler(hidden, waves) + (1 - self.alpha) * self.attention(hidden)
        out: Tensor = self.norm(self.dropout(self.outer(self.activation(self.inner(mixed)))) + mixed)
        return out


class BSARec(SessionRecommender):
    """BSARec. Local: the last click's item embedding; global: the output at the last click.

    Args:
        config: reads `embedding_size`, `n_layers`, `n_heads`, `inner_size`, `hidden_dropout_prob`, `attn_dropout_prob`, `hidden_act`,
            `layer_norm_eps`, `initializer_range`, `c` (frequencies of the low-pass part), `alpha` (share of the rescaler) and
            `MAX_ITEM_LIST_LENGTH`.
        dataset: RecBole's dataset.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        self.check_settings(config)
        super().__init__(config, dataset)
        size, self.c = config["embedding_size"], config["c"]
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.position_embedding = nn.Embedding(config["MAX_ITEM_LIST_LENGTH"], size)
        self.norm, self.dropout = nn.LayerNorm(size, config["layer_norm_eps"]), Dropout(config["hidden_dropout_prob"])
        self.layers = nn.ModuleList(BSARecLayer(size, config) for _ in range(config["n_layers"]))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config["initializer_range"])
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @staticmethod
    def check_settings(settings: Any) -> None:
        """Refuse a size that the heads do not divide.

        Raises:
            UserError: `embedding_size` is no multiple of `n_heads`.
        """
        size, heads = settings["embedding_size"], settings["n_heads"]
        if size % heads:
            raise UserError(f"embedding_size={size} must be a multiple of n_heads={heads}; change one of them")

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Local and global embedding."""
        length = interaction[self.ITEM_SEQ_LEN]
        item_seq = interaction[self.ITEM_SEQ][:, : int(length.max())]  # no more padding than the batch needs, [B, L]
        items = self.embed(item_seq)  # [B, L, H]
        # The authors pad on the left: the last click always has the last position. So positions are counted from the end.
        back = length.unsqueeze(1) - 1 - torch.arange(item_seq.size(1), device=item_seq.device)  # [B, L]
        hidden = self.dropout(self.norm(items + self.position_embedding(back.clamp(min=0))))
        waves = slow_waves(length, item_seq.size(1), self.c, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, waves)
        last = length - 1
        return SessionEmbeddings(self.gather_indexes(items, last), self.gather_indexes(hidden, last))

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session embedding itself, [B, H]."""
        return embeddings.global_emb
