"""Beam search held to the titles of a catalogue: every answer is an item, and none of those that are excluded.

The titles stand in a tree of their tokens. At each token a beam chooses among those that lead to a title which is still allowed; their
probabilities are made to sum to one (generative retrieval: De Cao et al., "Autoregressive entity retrieval", ICLR 2021). Where one title
is left the rest of it is certain and is not computed: most titles are told apart after two or three tokens.
"""

from collections.abc import Sequence

import torch

from recbole_llm4sbr.intent.backends.beams import Found, Model


class TitleTree:
    """Titles as a tree of tokens, whose nodes are ranges of the titles in the order of their tokens.

    Args:
        titles: of the catalogue.
        tokens: of each title.
        end: a token that is in no title; it stands behind each, so that no title is the beginning of another.
        device: of the tensors.

    Attributes:
        titles: the distinct ones, T of them, in the order of the tree.
        place: of each title there.
        length: of each title its tokens.
        first, last: by node the titles below it, from `first` to before `last`, [nodes]; node 0 is the root.
        begin, count: by node where its children stand in `token` and `child`, and how many they are; none below a single title, [nodes].
        token, child: by edge the token that leads on and the node to which it leads, [edges].
    """

    def __init__(self, titles: Sequence[str], tokens: Sequence[Sequence[int]], end: int, device: torch.device) -> None:
        distinct = sorted({(*path, end): title for path, title in zip(tokens, titles, strict=True)}.items())
        paths = [path for path, _ in distinct]
        self.titles = [title for _, title in distinct]
        self.length = [len(path) - 1 for path in paths]
        self.place = {title: place for place, title in enumerate(self.titles)}
        nodes = [(0, len(paths), 0)]  # first, last, depth
        children: list[tuple[int, int]] = []  # begin, count
        edges: list[tuple[int, int]] = []  # token, child
        for first, last, depth in nodes:  # grows as it is read
            begin = len(edges)
            if last - first > 1:
                starts = [row for row in range(first, last) if row == first or paths[row][depth] != paths[row - 1][depth]]
                for start, behind in zip(starts, [*starts[1:], last]):
                    edges.append((paths[start][depth], len(nodes)))
                    nodes.append((start, behind, depth + 1))
            children.append((begin, len(edges) - begin))
        self.first, self.last, _ = torch.tensor(nodes, device=device).T
        self.begin, self.count = torch.tensor(children, device=device).T
        self.token, self.child = torch.tensor(edges or [(0, 0)], device=device).T

    def allowed(self, excluded: Sequence[Sequence[str]]) -> torch.Tensor:
        """How many of the first t titles are not excluded, by prompt, [P, T + 1].

        Args:
            excluded: titles that are no answers to each prompt; what is no title of the tree is passed over.
        """
        free = torch.ones(len(excluded), len(self.titles), dtype=torch.int32, device=self.token.device)
        out = [(row, self.place[title]) for row, each in enumerate(excluded) for title in each if title in self.place]
        if out:
            free[tuple(torch.tensor(out, device=free.device).T)] = 0
        return torch.nn.functional.pad(free.cumsum(1, dtype=torch.int32), (1, 0))


@torch.inference_mode()
def likeliest_titles(
    model: Model, first: torch.Tensor, mask: torch.Tensor, tree: TitleTree, allowed: torch.Tensor, width: int
) -> Found:
    """The likeliest titles of the tree behind each prompt, as beam search finds them.

    A title's probability is the product of those of its tokens, each among the tokens that lead to an allowed title. Beams are columns
    of their prompt's row, as in `beams.likeliest`; one whose title is certain is no column any more.

    Args:
        model: has read the prompts.
        first: log-probabilities of the first token, [P, V].
        mask: 1 where a column of the prompts is seen, [P, L].
        tree: of the titles.
        allowed: titles of each prompt, as `tree.allowed` has them, [P, T + 1].
        width: W, the number of titles and of beams.

    Returns:
        In place of tokens the titles' places in the tree, [P, W, 1]; -1 where there is none.
    """
    device, prompts = first.device, torch.arange(len(first), device=first.device)  # those that are in the batch, [N]
    found = Found(
        torch.full((len(first), width), -torch.inf, device=device), torch.full((len(first), width, 1), -1, device=device)
    )
    node = torch.zeros(len(first), 1, dtype=torch.long, device=device)  # of the beams, [N, B]
    live = torch.zeros(len(first), 1, device=device)  # their log-probabilities, -inf for none, [N, B]
    seen, behind = mask.bool().unsqueeze(1), mask.sum(1, keepdim=True)  # [N, B, columns], [N, 1]
    coming, step = first.unsqueeze(1), 0  # [N, B, V]
    token, beam = torch.zeros_like(node), torch.zeros_like(node)

    def left(of: torch.Tensor) -> torch.Tensor:
        """Allowed titles below nodes, [N, ...]."""
        counts = allowed[prompts]
        return (counts.gather(1, tree.last[of].flatten(1)) - counts.gather(1, tree.first[of].flatten(1))).view_as(of)

    live = live.masked_fill(left(node) == 0, -torch.inf)
    while True:
        # Beams whose title is certain have found it.
        certain = (left(node) == 1) & (live > -torch.inf)
        counts = allowed[prompts]
        place = torch.searchsorted(counts[:, 1:].contiguous(), counts.gather(1, tree.first[node]) + 1)
        found.add(prompts, live.masked_fill(~certain, -torch.inf), place.masked_fill(~certain, -1).unsqueeze(2))
        live = live.masked_fill(certain, -torch.inf)
        live = live.masked_fill(live <= found.scores[prompts].amin(1, keepdim=True), -torch.inf)
        going = (live > -torch.inf).any(1)
        if not going.any():
            return found
        if step:
            # The best first: fewer beams are fewer columns.
            live, order = live.topk(int((live > -torch.inf).sum(1).max()), 1)
            node, token, beam = (each.gather(1, order) for each in (node, token, beam))
            own = torch.eye(beam.shape[1], dtype=torch.bool, device=device).expand(len(prompts), -1, -1)
            seen = torch.cat([seen.gather(1, beam.unsqueeze(2).expand(-1, -1, seen.shape[2])), own], 2)
            if 4 * int(going.sum()) < 3 * len(going):
                model.keep(going.nonzero().squeeze(1))
                prompts, live, node, token, seen, behind = (each[going] for each in (prompts, live, node, token, seen, behind))
            coming = model.grow(token, seen, (behind + step - 1).expand_as(token))
        children = torch.arange(int(tree.count[node].max()), device=device)  # [C]
        edge = (tree.begin[node].unsqueeze(2) + children).clamp(max=len(tree.token) - 1)  # [N, B, C]
        leads = (children < tree.count[node].unsqueeze(2)) & (left(tree.child[edge]) > 0)
        chosen = coming.gather(2, tree.token[edge]).masked_fill(~leads, -torch.inf).log_softmax(2)
        grown = (live.unsqueeze(2) + chosen).nan_to_num(nan=-torch.inf, neginf=-torch.inf).flatten(1)
        live, flat = grown.topk(min(width, grown.shape[1]), 1)
        beam, edge = flat // len(children), edge.flatten(1).gather(1, flat)
        node, token = tree.child[edge], tree.token[edge]
        step += 1
