"""Beam search for the likeliest titles: the question asks for one, and the local engine reads several from the LLM's probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Score = Callable[
    [torch.Tensor, torch.Tensor], torch.Tensor
]  # new tokens and mask -> log-probabilities of the next one, [rows, V]


@dataclass
class Found:
    """The likeliest titles of P prompts so far, W each.

    Attributes:
        scores: log-probabilities, -inf where there is none yet, [P, W].
        tokens: of each title with the token that ended it, padded behind, [P, W, T].
    """

    scores: torch.Tensor
    tokens: torch.Tensor

    def add(self, prompts: torch.Tensor, scores: torch.Tensor, tokens: torch.Tensor) -> None:
        """Let further titles compete.

        Args:
            prompts: whose they are, [N].
            scores: their log-probabilities, -inf for none, [N, B].
            tokens: of them, [N, B, T].
        """
        best, place = torch.cat([self.scores[prompts], scores], 1).topk(self.scores.shape[1], 1)
        both = torch.cat([self.tokens[prompts], tokens], 1)
        self.scores[prompts] = best
        self.tokens[prompts] = both.gather(1, place.unsqueeze(2).expand(-1, -1, both.shape[2]))


@torch.inference_mode()
def likeliest(
    score: Score, ids: torch.Tensor, mask: torch.Tensor, cache: Any, stops: torch.Tensor, width: int, most: int, pad: int
) -> Found:
    """The likeliest titles behind each prompt, as beam search finds them.

    A title ends before the first of `stops`; its probability is that of its tokens, times the sum of the probabilities of all ways to
    end there. No title is empty, and long ones have no bonus. A prompt is done when nothing that still grows can become one of its W
    titles; it then leaves the batch. What has not ended after `most` tokens counts as it stands.

    Args:
        score: of new tokens, with the cache of those before, the log-probabilities of what comes next; it extends the cache.
        ids: of the prompts, padded on the left, [P, L]; the cache holds the first columns.
        mask: 1 where a column is seen, [P, L].
        cache: keys and values of P rows; it must know `get_seq_length` and `batch_select_indices`.
        stops: tokens that end a title.
        width: W, the number of titles and of beams.
        most: tokens of a title.
        pad: token behind a title's end.
    """
    device, prompts = ids.device, torch.arange(len(ids), device=ids.device)  # whose beams are in the batch, [N]
    found = Found(
        torch.full((len(ids), width), -torch.inf, device=device), torch.full((len(ids), width, most), pad, device=device)
    )
    live = torch.zeros(len(ids), 1, device=device)  # log-probabilities of the beams, [N, B]
    made = torch.full((len(ids), 1, most), pad, device=device)  # their tokens, [N, B, T]
    new = ids[:, cache.get_seq_length() :]
    for step in range(most):
        beams = live.shape[1]
        coming = score(new, mask).view(len(prompts), beams, -1)  # [N, B, V]
        endings = coming[:, :, stops]
        if step:
            ended = made.clone()
            ended[:, :, step] = stops[endings.argmax(2)]
            found.add(prompts, live + endings.logsumexp(2), ended)
        coming[:, :, stops] = -torch.inf
        grown = (live.unsqueeze(2) + coming).flatten(1)
        live, flat = grown.topk(min(width, grown.shape[1]), 1)  # [N, W], fewer at first where W is large
        beam, token = flat // coming.shape[2], flat % coming.shape[2]
        made = made.gather(1, beam.unsqueeze(2).expand(-1, -1, most))
        made[:, :, step] = token
        going = found.scores[prompts].amin(1) < live.amax(1)
        if step == most - 1:
            found.add(prompts[going], live[going], made[going])
        if step == most - 1 or not going.any():
            break
        if bool(going.all()) or 4 * int(going.sum()) > 3 * len(going):
            going = torch.ones_like(going)  # copying the cache costs more than computing a quarter of it in vain
        row = (torch.arange(len(prompts), device=device).unsqueeze(1) * beams + beam)[going].flatten()
        cache.batch_select_indices(row)
        prompts, live, made, token = prompts[going], live[going], made[going], token[going]
        new = token.reshape(-1, 1)
        mask = torch.cat([mask[row], torch.ones_like(new)], 1)
    return found
