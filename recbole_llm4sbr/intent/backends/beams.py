"""Beam search for the likeliest titles: the question asks for one, and the local engine reads several from the LLM's probabilities."""

from dataclasses import dataclass
from typing import Protocol

import torch


class Model(Protocol):
    """What beam search asks: a language model that has read P prompts."""

    def grow(self, tokens: torch.Tensor, seen: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Read a further token of each beam; the log-probabilities of the next one, [N, B, V].

        Args:
            tokens: of B beams of each of N prompts; they become the next B columns of the prompt's row, [N, B].
            seen: which columns each of them sees, its own at the end, [N, B, columns].
            places: of the tokens in their text, [N, B].
        """
        ...

    def keep(self, prompts: torch.Tensor) -> None:
        """Go on with these of the prompts alone, [M]."""
        ...


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
    model: Model, first: torch.Tensor, mask: torch.Tensor, stops: torch.Tensor, width: int, most: int, pad: int
) -> Found:
    """The likeliest titles behind each prompt, as beam search finds them.

    A title ends before the first of `stops`; its probability is that of its tokens, times the sum of the probabilities of all ways to
    end there. No title is empty, and long ones have no bonus. A prompt is done when nothing that still grows can become one of its W
    titles; it then leaves the batch. What has not ended after `most` tokens counts as it stands.

    The beams of a prompt are columns of one row, and each sees its own ancestors among them: the prompt's keys and values stand there
    once, and nothing is copied when a beam goes on from another.

    Args:
        model: has read the prompts.
        first: log-probabilities of the first token, [P, V].
        mask: 1 where a column of the prompts is seen, [P, L].
        stops: tokens that end a title.
        width: W, the number of titles and of beams.
        most: tokens of a title.
        pad: token behind a title's end.
    """
    device, prompts = first.device, torch.arange(len(first), device=first.device)  # those that are in the batch, [N]
    found = Found(
        torch.full((len(first), width), -torch.inf, device=device), torch.full((len(first), width, most), pad, device=device)
    )
    live = torch.zeros(len(first), 1, device=device)  # log-probabilities of the beams, [N, B]
    made = torch.full((len(first), 1, most), pad, device=device)  # their tokens, [N, B, T]
    seen, behind = mask.bool().unsqueeze(1), mask.sum(1, keepdim=True)  # [N, B, columns], [N, 1]
    coming = first.unsqueeze(1)  # [N, B, V]
    for step in range(most):
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
            break
        if not going.any():
            break
        own = torch.eye(beam.shape[1], dtype=torch.bool, device=device).expand(len(prompts), -1, -1)
        seen = torch.cat([seen.gather(1, beam.unsqueeze(2).expand(-1, -1, seen.shape[2])), own], 2)
        if 4 * int(going.sum()) < 3 * len(going):
            # copying what the model has read costs less than computing a quarter of it in vain
            model.keep(going.nonzero().squeeze(1))
            prompts, live, made, token, seen, behind = (each[going] for each in (prompts, live, made, token, seen, behind))
        coming = model.grow(token, seen, (behind + step).expand_as(token))
    return found
