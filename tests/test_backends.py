import pytest
import torch

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.intent.backends import BACKENDS, Request, make_backend
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend, _common, _groups
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.settings import CHOICES, load_settings


def requests():
    template = PromptTemplate.load("movies")
    sessions = [
        [f"film {n * 7 % 13} part {n}" for n in range(start, start + length)]
        for start, length in enumerate((1, 2, 5, 9, 12, 3))
    ]
    return [template.build(session, view) for session in sessions for view in ("long", "short")] + [Request("", "hi", "")]


def one_by_one(folder, asked, max_new_tokens):
    """The plain loop of the authors' code: one prompt, one generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for request in asked:
        chat = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + request.answer_start
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        answer = tokenizer.decode(out, skip_special_tokens=True)
        stops = [i for i, piece in enumerate(answer) if piece in '"Ċ']
        answers.append(answer[: stops[0] + 1] if stops else answer)
    return answers


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batches_with_shared_prefixes_answer_as_one_prompt_at_a_time(tiny_llm, batch_size):
    asked = requests()
    backend = TransformersBackend(tiny_llm, 12, batch_size, "cpu")
    got = dict(backend.generate(asked))
    assert [got[n] for n in range(len(asked))] == one_by_one(tiny_llm, asked, 12)
    assert len(set(got.values())) > 3  # the model does not answer everything alike


def test_views_of_a_session_form_a_group_with_their_common_beginning():
    shared = list(range(100, 160))
    tokens = [[*shared, 1, 2, 3], [7] * 50, [*shared, 4], [*shared[:10], 9, 9]]
    groups = sorted((sorted(group.members), group.shared) for group in _groups(tokens))
    assert groups == [([0, 2], 60), ([1], 0), ([3], 0)]
    assert _common([1, 2, 3], [1, 2, 3]) == 2


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
    assert set(CHOICES["llm_backend"]) == set(BACKENDS)
    for name in BACKENDS:
        settings = load_settings(dataset="tiny", overrides={"llm_backend": name, "llm": tiny_llm, "llm_max_new_tokens": 4})
        backend = make_backend(settings)
        assert backend.identity
        assert sorted(position for position, _ in backend.generate(requests())) == list(range(len(requests())))
        assert list(backend.generate([])) == []


@pytest.mark.llm
def test_the_embedded_llm_answers_and_the_embedded_encoder_knows_what_is_alike():
    from recbole_llm4sbr.intent.encoder import Encoder

    backend = TransformersBackend("smollm2-135m-instruct", 16, 4)
    asked = requests()[:4]
    assert len(dict(backend.generate(asked))) == 4
    vectors = Encoder("all-minilm-l6-v2").encode(["The Lion King (1994)", "Lion King", "Terminator 2"])
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
