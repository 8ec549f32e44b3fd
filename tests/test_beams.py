"""Several titles of one question, by beam search."""

import itertools
import math

import pytest
import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_sessions
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.beams import likeliest
from recbole_llm4sbr.intent.backends.chat import render
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.llm_intents import asked_about
from recbole_llm4sbr.intent.pretrained import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


class Chain:
    """Not a language model: the last token alone decides the next one."""

    def __init__(self, table, mask):
        self.table, self.columns, self.grown = table, mask.shape[1], 0

    def after(self, tokens):
        return self.table[tokens].log_softmax(-1)

    def keep(self, prompts):
        assert len(prompts)

    def grow(self, tokens, seen, places):
        self.columns += tokens.shape[1]
        self.grown += tokens.numel()
        assert seen.shape == (*tokens.shape, self.columns)
        assert torch.equal(seen.sum(2), places + 1)  # all that stands before it, and itself
        return self.after(tokens)


def every_title(table, first, stops, most):
    """All titles behind a token with their log-probabilities, by enumeration; those of `most` tokens need no end."""
    logs, others = table.log_softmax(-1).double(), [token for token in range(len(table)) if token not in stops]
    found = {}
    for length in range(1, most + 1):
        for title in itertools.product(others, repeat=length):
            total = sum(float(logs[a, b]) for a, b in itertools.pairwise([first, *title]))
            end = math.log(sum(math.exp(float(logs[title[-1], stop])) for stop in stops))
            found[title] = total if length == most else total + end
    return found


@pytest.mark.parametrize("seed", range(3))
def test_wide_beams_find_the_likeliest_titles_that_enumeration_finds(seed):
    torch.manual_seed(seed)
    table, stops, most, width = torch.randn(7, 7), [1, 4], 4, 5**3
    ids = torch.tensor([[2, 3], [5, 6], [0, 2]])
    chain = Chain(table, mask := torch.ones_like(ids))
    found = likeliest(chain, chain.after(ids[:, -1]), mask, torch.tensor(stops), width, most, pad=-1)
    for prompt in range(3):
        expected = sorted(every_title(table, int(ids[prompt, -1]), stops, most).items(), key=lambda each: -each[1])[:40]
        mine = [
            (tuple(token for token in tokens if token >= 0 and token not in stops), score)
            for tokens, score in zip(found.tokens[prompt].tolist(), found.scores[prompt].tolist())
        ][:40]
        assert [score for _, score in mine] == pytest.approx([score for _, score in expected], abs=1e-4)
        assert {title for title, _ in mine[:30]} == {title for title, _ in expected[:30]}


def test_the_likeliest_ending_is_the_one_that_is_kept():
    table = torch.full((5, 5), -30.0)
    table[0, 3] = 0.0  # 0 -> 3 -> 4 by .5, 2 by .4; both end it
    table[3, 4], table[3, 2], table[3, 1] = math.log(0.5), math.log(0.4), math.log(0.1)
    chain = Chain(table, mask := torch.ones(1, 1).long())
    found = likeliest(chain, chain.after(torch.tensor([0])), mask, torch.tensor([2, 4]), 2, 3, pad=-1)
    assert found.tokens[0, 0].tolist() == [3, 4, -1]
    assert float(found.scores[0, 0].exp()) == pytest.approx(0.9)


def by_hand(model, tokenizer, prompt, width, most, stops):
    """Beam search as a textbook has it, a whole prompt at a time, without a cache."""
    live, ended = [(0.0, [])], []
    for step in range(most):
        grown = []
        for total, made in live:
            with torch.no_grad():
                logs = model(torch.tensor([prompt + made])).logits[0, -1].double().log_softmax(-1)
            if step:
                ended.append((total + float(logs[stops].logsumexp(0)), made))
            grown += [(total + float(logs[token]), [*made, token]) for token in range(len(logs)) if token not in stops]
        live = sorted(grown, key=lambda each: -each[0])[:width]
    best = sorted([(*each, True) for each in ended] + [(*each, False) for each in live], key=lambda each: -each[0])[:width]
    return [(tokenizer.decode(made, skip_special_tokens=True).strip(), whole) for _, made, whole in best]


def test_answers_are_those_of_a_beam_search_by_hand_in_any_batch(tiny_llm):
    words = ["Heat", "Babe", "Casino", "Toy Story", "Heat of the Night", "Ran"]
    requests = [
        Request("You know.", "\n".join(["Seen:", *words[:count], task]), 'Movie: "')
        for count in (1, 3, 6)
        for task in ("Guess one.", "Guess the next.")
    ]
    model, tokenizer = resolve(tiny_llm, "llm").load_causal_lm(torch.bfloat16, torch.device("cpu"))
    model.double()  # rounding decides between no two titles
    stops = [tokenizer.convert_tokens_to_ids(each) for each in ('"', "Ċ", "[EOS]")]
    answers = {}
    for tokens, share in ((100_000, True), (900, True), (100_000, False)):
        backend = TransformersBackend(tiny_llm, 4, tokens, "cpu", beams=3, share=share)
        backend.load()
        backend._model = model
        found = {reply.position: reply for reply in backend.generate(requests)}
        assert sorted(found) == list(range(len(requests)))
        answers[tokens, share] = [found[position].answer for position in range(len(requests))]
    for request, *mine in zip(requests, *answers.values()):
        prompt = tokenizer(render(tokenizer, request), add_special_tokens=False).input_ids
        found = by_hand(model, tokenizer, prompt, 3, 4, stops)
        titles = [title for title, whole in found if title and whole] or [found[0][0]]  # those that were cut are left out
        assert mine == ["\n".join(f"{number}. {title}" for number, title in enumerate(dict.fromkeys(titles), 1))] * 3


def test_the_question_is_for_one_title_and_the_intents_have_several(settings_for, tiny_llm):
    settings = settings_for(llm=tiny_llm, llm_backend="transformers", llm_device="cpu", intent_answers=3, llm_max_new_tokens=4)
    settings |= {"llm_beams": True}
    prepare(settings)
    made = infer(settings)
    assert made.counts.calls == made.counts.distinct_prompts
    rows = read_sessions(dataset_folder(settings), "tiny", "test")
    several = 0
    for asked in asked_about(settings, rows):
        for each in asked.values():
            assert "Give 3 different" not in each.prompt and each.prompt.endswith('Name: "')
            several += len(each.names) > 1
    assert several > 0
    again = infer(settings | {"rebuild": True, "llm_beams": True})
    assert again.counts.calls == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"intent_answers": 1}, "add --intent_answers=5"),
        ({"intent_answers": 3, "views_in_one_call": True}, "no --views_in_one_call"),
        ({"intent_answers": 3, "llm_backend": "echo"}, "needs llm_backend=transformers, not 'echo'"),
        ({"intent_answers": 3, "llm_backend": "ray", "ray_backend": "vllm"}, "needs llm_backend=transformers, not 'vllm'"),
    ],
)
def test_beams_that_cannot_be_are_refused(settings_for, tiny_llm, changed, message):
    settings = settings_for(**({"llm": tiny_llm, "llm_backend": "transformers", "llm_beams": True} | changed))
    prepare(settings)
    with pytest.raises(UserError, match=message):
        infer(settings)


def test_beams_are_asked_for_by_a_decoding_of_their_own(tiny_llm):
    assert len({str(TransformersBackend(tiny_llm, 4, beams=beams).decoding) for beams in (1, 3, 5)}) == 3
