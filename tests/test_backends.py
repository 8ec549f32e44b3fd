import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.intent.backends import BACKENDS, Request, make_backend
from recbole_llm4sbr.intent.backends.chat import common, group, render
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend
from recbole_llm4sbr.intent.prompts import PromptTemplate


def requests():
    template = PromptTemplate.load("movies")
    sessions = [
        [f"film {n * 7 % 13} part {n}" for n in range(start, start + length)]
        for start, length in enumerate((1, 2, 5, 9, 12, 3))
    ]
    sessions += [sessions[4][:length] for length in range(3, 11)]  # prefixes of a session
    return [template.build(session, view) for session in sessions for view in ("long", "short")] + [Request("", "hi", "")]


def one_by_one(folder, asked, max_new_tokens):
    """The plain loop of the authors' code: one prompt, one generate. In double, so that rounding chooses no token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.double).eval()
    answers = []
    for request in asked:
        chat = [{"role": "system", "content": request.system}] if request.system else []
        chat.append({"role": "user", "content": request.user})
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + request.answer_start
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        answer = tokenizer.decode(out, skip_special_tokens=True)
        stops = [i for i, piece in enumerate(answer) if piece in '"Ċ']
        answers.append(answer[: stops[0] + 1] if stops else answer)
    return answers


@pytest.mark.parametrize("lines", [1, 2])
def test_an_answer_is_cut_where_the_model_went_on_to_the_limit(tiny_llm, monkeypatch, lines):
    monkeypatch.setattr("recbole_llm4sbr.intent.backends.transformers.compute_dtype", lambda device: torch.float32)
    asked = [request._replace(lines=lines) for request in requests()]
    long, short = (list(TransformersBackend(tiny_llm, limit, device="cpu").generate(asked)) for limit in (60, 12))
    whole = {reply.position: reply for reply in long}
    cut = {reply.position: reply.cut for reply in short}
    assert {True, False} == set(cut.values())
    for reply in short:
        assert whole[reply.position].answer.startswith(reply.answer)
        assert reply.cut == (whole[reply.position].answer_tokens > 12 * lines)


def answers(backend, asked):
    return {reply.position: reply.answer for reply in backend.generate(asked)}


@pytest.mark.parametrize("batch_tokens", [1, 1500, 0])
def test_batches_with_shared_prefixes_answer_as_one_prompt_at_a_time(tiny_llm, batch_tokens, monkeypatch):
    monkeypatch.setattr("recbole_llm4sbr.intent.backends.transformers._BLOCK", 20)  # several blocks
    monkeypatch.setattr("recbole_llm4sbr.intent.backends.transformers.compute_dtype", lambda device: torch.double)
    asked = requests()
    got = answers(TransformersBackend(tiny_llm, 12, batch_tokens, "cpu"), asked)
    assert [got[n] for n in range(len(asked))] == one_by_one(tiny_llm, asked, 12)
    assert len(set(got.values())) > 3  # the model does not answer everything alike


def test_when_memory_is_too_small_batches_and_then_groups_are_halved_and_nothing_is_lost(tiny_llm, monkeypatch):
    original, sizes = TransformersBackend._answer, []

    def small(self, batch, *rest):
        sizes.append(sum(len(each.members) for each in batch))
        if sizes[-1] > 3:
            raise torch.cuda.OutOfMemoryError
        yield from original(self, batch, *rest)

    expected = answers(TransformersBackend(tiny_llm, 4, 1, "cpu"), requests())
    monkeypatch.setattr(TransformersBackend, "_answer", small)
    got = answers(TransformersBackend(tiny_llm, 4, 0, "cpu"), requests())
    assert sorted(got) == sorted(expected)
    assert max(sizes) > 16
    monkeypatch.setattr(TransformersBackend, "_answer", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError()))
    with pytest.raises(torch.cuda.OutOfMemoryError):  # one prompt alone does not fit
        answers(TransformersBackend(tiny_llm, 4, 0, "cpu"), requests())


def test_a_sliding_window_is_not_led_through_a_chain_with_holes(tiny_llm, tmp_path, monkeypatch):
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    monkeypatch.setattr("recbole_llm4sbr.intent.backends.transformers.compute_dtype", lambda device: torch.double)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=40, pad_token_id=0, bos_token_id=2, eos_token_id=4, initializer_range=0.3,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    got = answers(TransformersBackend(str(tmp_path), 8, 0, "cpu"), requests())
    assert [got[n] for n in range(len(got))] == one_by_one(tmp_path, requests(), 8)


def test_prompts_that_begin_alike_form_a_group_along_one_chain():
    root, items = [1, 2, 3], list(range(100, 200))
    tokens = [
        [*root, *items[:60], 7, 7],  # a session's prefixes ...
        [*root, *items[:60], 8, 8],
        [*root, *items[:40], 7, 7],
        [*root, *items[:40], 8, 8],
        [*root, *range(300, 350)],  # ... and another session
        [*root, *items[:10], *range(400, 460)],  # too little in common
    ]
    found = {tuple(sorted(each.members)): each for each in group(tokens)}
    assert set(found) == {(0, 1, 2, 3), (4,), (5,)}
    chain = found[0, 1, 2, 3]
    assert chain.chain == [*root, *items[:60]]
    assert dict(zip(chain.members, chain.shared)) == {0: 63, 1: 63, 2: 43, 3: 43}
    assert found[4,].chain == root
    assert common([1, 2, 3], [1, 2, 3]) == 2
    assert group([]) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=40), st.integers(1, 8))
def test_groups_hold_every_prompt_once_and_share_what_is_really_common(tokens, largest):
    groups = group(tokens, largest, least=2)
    assert sorted(i for each in groups for i in each.members) == list(range(len(tokens)))
    for each in groups:
        assert len(each.members) <= largest
        for i, shared in zip(each.members, each.shared, strict=True):
            assert tokens[i][:shared] == list(each.chain[:shared])
            assert shared < len(tokens[i])


def test_a_folder_that_is_no_model_is_named(tmp_path, tiny_encoder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a model folder"):
        TransformersBackend(str(tmp_path / "empty"), 8, 2)
    with pytest.raises(UserError, match="no such folder"):
        TransformersBackend(str(tmp_path / "missing"), 8, 2)
    with pytest.raises(UserError, match="no such file"):
        TransformersBackend(str(tmp_path / "missing.gguf"), 8, 2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="cannot load the model"):
        list(TransformersBackend(str(tmp_path / "broken"), 8, 2).generate(requests()))


def test_every_backend_of_the_table_is_a_choice_and_answers_every_request(tiny_llm):
    assert set(schema()["llm_backend"].choices) == set(BACKENDS)
    for name in ("transformers", "echo"):  # the others have tests of their own
        settings = load_settings(dataset="tiny", overrides={"llm_backend": name, "llm": tiny_llm, "llm_max_new_tokens": 4})
        backend = make_backend(settings)
        assert backend.identity
        assert sorted(answers(backend, requests())) == list(range(len(requests())))
        assert list(backend.generate([])) == []


@pytest.mark.llm
def test_the_embedded_llm_answers_and_the_embedded_encoder_knows_what_is_alike():
    from recbole_llm4sbr.intent.encoder import Encoder

    backend = TransformersBackend("smollm2-135m-instruct", 16, 4)
    asked = requests()[:4]
    assert len(answers(backend, asked)) == 4
    vectors = Encoder("all-minilm-l6-v2").encode(["The Lion King (1994)", "Lion King", "Terminator 2"])
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]


class FakeVLLM:
    """Stands in for the vllm module (tests/test_vllm.py runs the real one): it "generates" the reversed prompt, ends up to three
    requests in each step, the newest first, and keeps what it was given."""

    class LLM:
        def __init__(self, **given):
            FakeVLLM.made, FakeVLLM.prompts, FakeVLLM.sampling, FakeVLLM.most = given, [], [], 0
            self.llm_engine, self._waiting = self, {}

        def add_request(self, name, prompt, sampling):
            FakeVLLM.prompts.append(prompt)
            FakeVLLM.sampling.append(sampling)
            self._waiting[name] = prompt["prompt_token_ids"][::-1]
            FakeVLLM.most = max(FakeVLLM.most, len(self._waiting))

        def step(self):
            ended = [self._waiting.popitem() for _ in range(min(3, len(self._waiting)))]
            output = [
                (
                    name,
                    SimpleNamespace(text=f"{ids[0]}-{len(ids)}", token_ids=ids, finish_reason=["length", "stop"][len(ids) % 2]),
                )
                for name, ids in ended
            ]
            unfinished = [SimpleNamespace(request_id=name, finished=False) for name in self._waiting]
            return [SimpleNamespace(request_id=name, finished=True, outputs=[each]) for name, each in output] + unfinished

    SamplingParams = staticmethod(lambda **given: given)


def test_the_vllm_backend_gives_each_request_its_own_answer_and_keeps_shared_beginnings_together(tiny_llm, monkeypatch):
    from recbole_llm4sbr.intent.backends import vllm
    from recbole_llm4sbr.intent.backends.vllm import VLLMBackend

    monkeypatch.setitem(sys.modules, "vllm", FakeVLLM)
    monkeypatch.setitem(
        sys.modules, "vllm.sampling_params", SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="last"))
    )
    monkeypatch.setattr(vllm, "_BLOCK", 7)
    monkeypatch.setattr(vllm, "_WAITING", 5)
    backend, plain = VLLMBackend(tiny_llm, 12), TransformersBackend(tiny_llm, 12, device="cpu")
    assert (backend.identity, backend.decoding) == (plain.identity, plain.decoding)  # local engines share their answers
    asked = [*requests(), Request("s", "two lines", "", 2)]
    tokenizer = backend._source.load_tokenizer()
    expected = [tokenizer(render(tokenizer, request), add_special_tokens=False).input_ids for request in asked]
    assert answers(backend, asked) == {n: f"{ids[-1]}-{len(ids)}" for n, ids in enumerate(expected)}
    given = [prompt["prompt_token_ids"] for prompt in FakeVLLM.prompts]
    assert len(asked) > 7
    assert all(given[start : start + 7] == sorted(given[start : start + 7]) for start in range(0, len(given), 7))
    assert FakeVLLM.most == 5
    replies = list(backend.generate(asked))
    assert {reply.position: reply.cut for reply in replies} == {n: len(ids) % 2 == 0 for n, ids in enumerate(expected)}
    ends = [place for place, reply in enumerate(replies) if not reply.more]
    assert max(end - start for start, end in zip([-1, *ends], ends)) <= 3  # a step ends a batch, which is stored
    assert FakeVLLM.made["enable_prefix_caching"]
    assert {each["max_tokens"] for each in FakeVLLM.sampling} == {12, 24}
    assert all(each["temperature"] == 0 for each in FakeVLLM.sampling)


def test_without_vllm_the_remedy_is_named(tiny_llm, monkeypatch):
    from recbole_llm4sbr.intent.backends.vllm import VLLMBackend

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'recbole-llm4sbr\[vllm\]'"):
        VLLMBackend(tiny_llm, 12)


def test_a_text_encoder_is_refused_as_an_llm(tiny_encoder):
    with pytest.raises(UserError, match=r"is a bert model.*--llm"):
        list(TransformersBackend(tiny_encoder, 4, device="cpu").generate([Request("s", "x")]))
