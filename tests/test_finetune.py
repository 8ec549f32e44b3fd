"""Tuning an LLM and a text encoder on the training part."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, session_rows

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import Settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.folders import dataset_folder, part_file
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.finetune import contrast, llm, packing, run
from recbole_llm4sbr.finetune.examples import training_pairs
from recbole_llm4sbr.finetune.judge import judge, sample
from recbole_llm4sbr.finetune.loop import Plan, Step, tune
from recbole_llm4sbr.finetune.run import Options, finetune
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.pretrained import resolve
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.intent.tuned import rows_read

if not find_spec("peft"):
    pytest.skip("peft is not installed", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = Options(
    part="llm",
    out=Path("tuned"),
    max_examples=60,
    epochs=2,
    batch=8,
    learning_rate=0.01,
    checks=2,
    patience=9,
    seed=7,
    answers=False,
    lora_rank=4,
    batch_tokens=2000,
    checkpointing=False,
    list_weight=0.0,
    quantize=False,
    check_sessions=0,
)


@pytest.fixture
def tuning(tiny, tiny_llm):
    """Settings of `tiny` with a local LLM."""
    return Settings(tiny) | {"llm": tiny_llm, "llm_backend": "transformers", "llm_device": "cpu"}


def titles(settings):
    lines = (dataset_folder(settings) / "tiny.item").read_text().splitlines()[1:]
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def test_an_example_is_the_prompt_of_infer_and_the_title_of_the_next_click_of_a_training_row(tuning):
    prepare(tuning)
    folder, names = dataset_folder(tuning), titles(tuning)
    last = session_rows(folder, "tiny", part_file("train", "last"))
    rows = {(*prefix, names[target]) for _, prefix, target in last}
    pairs = training_pairs(tuning, 0, 1000, 1)
    assert len(pairs) == len(last)
    asked = list(packing.questions(tuning, pairs))
    assert len(asked) == len(pairs)
    for example in asked:
        pair, answer, (request, other) = example.pair, example.answer, example.requests
        assert request == PromptTemplate.load(tuning["prompt"]).build(
            [names[token] for token in map(pairs.rows.tokens.__getitem__, pairs.clicks(pair))], "long"
        )
        assert request.user != other.user
        clicks = tuple(pairs.rows.tokens[click] for click in pairs.clicks(pair))
        assert (*clicks, answer.removesuffix('"')) in rows
        shown = [line.split(". ", 1)[1] for line in request.user.splitlines() if line.partition(".")[0].isdigit()]
        assert shown == [names[click] for click in clicks[-10:]]
        assert [line.split(". ", 1)[1] for line in example.lists[0].splitlines()] == shown and example.lists[0] in request.user


@pytest.mark.parametrize("split", ["temporal", "paper", "time_cut", "leave_one_out"])
@pytest.mark.parametrize("refresh", ["every", "powers"])
def test_no_validation_or_test_session_and_no_target_of_one_is_among_the_examples(settings_for, split, refresh):
    settings = settings_for(split=split, intent_refresh=refresh, intent_source="session_text")
    prepare(settings)
    folder = dataset_folder(settings)
    train = {(*prefix, target) for _, prefix, target in session_rows(folder, "tiny", "train")}
    later = {(*prefix, target) for _, prefix, target in session_rows(folder, "tiny", "valid-all", "test-all")}
    pairs = training_pairs(settings, 0, 1000, 1)
    read = {
        (*(pairs.rows.tokens[each] for each in pairs.clicks(pair)), pairs.rows.tokens[pairs.target[pair]])
        for pair in range(len(pairs))
    }
    assert read <= train and not read & (later - train)
    if refresh == "powers":
        assert {len(each) - 1 for each in read} <= {1, 2, 4, 8, 16}
        starts = {row[: 2**power + 1] for row in train for power in range(5) if len(row) > 2**power}
        assert read == starts


def test_a_session_is_held_out_with_all_its_rows(settings_for):
    settings = settings_for(intent_refresh="every")
    prepare(settings)
    pairs = training_pairs(settings, 0, 1000, 1)
    sides = {}
    for pair in range(len(pairs)):
        sides.setdefault(pairs.rows.ids[pairs.row[pair]].rpartition(".")[0], set()).add(bool(pairs.held_out[pair]))
    assert all(len(each) == 1 for each in sides.values())
    assert 0.02 < np.mean([True in each for each in sides.values()]) < 0.3


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Folder of a GPT-2 with random weights, whose layers keep theirs the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), make_tokenizer(chat=False)
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=2048, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_answer_alone_token_by_token(tuning, gpt2, kind):
    source = resolve({"llama": tuning["llm"], "gpt2": gpt2}[kind], "llm")
    model, tokenizer = source.load_causal_lm(torch.float32, torch.device("cpu"))
    pairs = training_pairs(tuning, 10, 5, 1)
    examples = list(packing.questions(tuning, pairs))
    expected, count = 0.0, 0
    for example, request in ((each, request) for each in examples if each.held_out for request in each.requests):
        prompt = tokenizer(llm.render(tokenizer, request), add_special_tokens=False).input_ids
        ending = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            scores = model(torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
        expected -= sum(float(scores[len(prompt) + place - 1, token]) for place, token in enumerate(ending))
        count += len(ending)
    for share in (True, False):
        model, tokenizer = source.load_causal_lm(torch.float32, torch.device("cpu"))
        tuned = llm.TunableLLM(model, tokenizer, examples, 4, 500, share=share)
        assert len(tuned._held_out) == (5 if share else 10)
        assert tuned.held_out_loss() == pytest.approx(expected / count, rel=1e-5)
        assert math.isfinite(tuned.step([0]).loss)


@pytest.mark.parametrize("kind", ["granite", "cohere", "gemma2"])
def test_scores_are_scaled_as_the_model_scales_them(kind):
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    size = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    size |= dict(num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = {
        "granite": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=6.0, **size)),
        "cohere": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.25, **size)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=0.1, **size)),
    }[kind]().eval()  # fmt: skip
    ids = torch.tensor([[5, 9, 30]])
    with torch.no_grad():
        plain = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
        scaled = llm._scaled(plain, model.config)
        assert not torch.allclose(plain, scaled, rtol=1e-3)
        torch.testing.assert_close(scaled, model(ids).logits)


@pytest.mark.parametrize(("list_weight", "rank"), [(0.0, 4), (0.7, 4), (0.7, 0)])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole_batch(tuning, monkeypatch, list_weight, rank):
    pairs = training_pairs(tuning, 10, 5, 1)
    examples = list(packing.questions(tuning, pairs))
    found = []
    for tokens, share, rows, scored in (
        (100_000, True, range(6), 512),
        (700, True, range(6), 50),
        (900, False, range(12), 512),
    ):
        monkeypatch.setattr(llm, "_SCORED", scored)
        model, tokenizer = resolve(tuning["llm"], "llm").load_causal_lm(torch.float32, torch.device("cpu"))
        torch.manual_seed(0)
        tuned = llm.TunableLLM(model, tokenizer, examples, rank, tokens, list_weight, share=share)
        for each in tuned.model.modules():
            if isinstance(each, torch.nn.Dropout):
                each.p = 0.0
        tuned.step(rows)
        found.append(torch.cat([each.grad.flatten() for each in tuned.parameters()]))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-6)


def test_the_loss_of_the_list_is_that_of_each_title_after_those_before_it(tuning):
    tuning = tuning | {"views": ["short"]}
    (example, *_) = packing.questions(tuning, training_pairs(tuning, 2, 1, 1))
    found = []
    for by_hand in (False, True):
        model, tokenizer = resolve(tuning["llm"], "llm").load_causal_lm(torch.float32, torch.device("cpu"))
        torch.manual_seed(0)
        tuned = llm.TunableLLM(model, tokenizer, [replace(example, held_out=False)], 4, 2000, list_weight=0.5)
        if by_hand:
            text = llm.render(tokenizer, example.requests[0])
            before, _, behind = text.partition(example.lists[0])
            prompt, first, rest = (
                tokenizer(each, add_special_tokens=False).input_ids for each in (text, before, example.lists[0] + behind)
            )
            behind = tokenizer(behind, add_special_tokens=False).input_ids
            assert prompt == first + rest and rest[-len(behind) :] == behind  # no token lies across the borders of the list
            ending = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            scores = tuned.model(torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
            listed = range(len(first), len(prompt) - len(behind))
            loss = -0.5 * torch.stack([scores[place - 1, prompt[place]] for place in listed]).mean()
            loss -= torch.stack([scores[len(prompt) - 1 + place, token] for place, token in enumerate(ending)]).mean()
            loss.backward()
        else:
            tuned.step([0])
        found.append(torch.cat([each.grad.flatten() for each in tuned.parameters()]))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_whole_weights_are_tuned_in_float32_where_the_model_computes_in_bfloat16(tuning):
    pairs = training_pairs(tuning, 10, 5, 1)
    examples = list(packing.questions(tuning, pairs))
    model, tokenizer = resolve(tuning["llm"], "llm").load_causal_lm(torch.bfloat16, torch.device("cpu"))
    tuned = llm.TunableLLM(model, tokenizer, examples, 0, 2000)
    assert sum(each.numel() for each in tuned.parameters()) == sum(each.numel() for each in model.parameters())
    before = tuned.held_out_loss()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=1e-3)
    started = [each.detach().clone() for each in tuned.parameters()]
    tuned.step(range(5))
    assert torch.nn.utils.get_total_norm([each.grad for each in tuned.parameters()]) <= 1.001
    for _ in range(100):  # too small for bfloat16 each, not all together
        optimizer.step()
    moved = [(each - start, each.grad) for each, start in zip(tuned.parameters(), started)]
    for change, gradient in moved:
        assert (change + 0.1 * gradient).norm() < 0.02 * (0.1 * gradient).norm() + 1e-9
    assert max(change.norm() for change, _ in moved) > 0.01
    for each in tuned.parameters():
        each.data -= 0.3 * each.grad
    assert tuned.held_out_loss() != before


@pytest.mark.parametrize(("rank", "learning_rate", "repeatable"), [(4, 0.02, True), (0, 0.003, False)])
def test_a_tuned_llm_answers_better_and_is_the_model_that_was_tuned(tuning, tmp_path, rank, learning_rate, repeatable):
    tuning = tuning | {"views": ["short"], "repeatable": repeatable}
    options = replace(OPTIONS, out=tmp_path / "tuned", max_examples=64, learning_rate=learning_rate, lora_rank=rank)
    said = finetune(tuning, options)
    made = json.loads((options.out / "finetune.json").read_text())
    titles = "catalogue" if repeatable else "new"
    assert made["asked"] == {"llm_beams": True, "llm_titles": titles, "intent_answers": 20, "intent_k_max": 20}
    assert made["result"]["best"] < 0.7 * made["result"]["first"], said
    assert not (options.out / "tuning").exists()
    model, tokenizer = resolve(str(options.out), "llm").load_causal_lm(torch.float32, torch.device("cpu"))
    pairs = training_pairs(tuning, 0, 300, options.seed)
    examples = list(packing.questions(tuning, pairs))
    again = llm.TunableLLM(model, tokenizer, examples, 4, 2000)  # its new adapters are zero
    assert again.held_out_loss() == pytest.approx(made["result"]["best"], rel=0.01)  # written in bfloat16
    before = {path.name: path.stat().st_mtime_ns for path in options.out.iterdir()}
    assert said.splitlines()[0] == finetune(tuning, options).splitlines()[0]  # it is not tuned again
    assert before == {path.name: path.stat().st_mtime_ns for path in options.out.iterdir()}
    with pytest.raises(UserError, match="tuned otherwise: options differs in epochs"):
        finetune(tuning, replace(options, epochs=3))


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, (True, 5)),
        ({"intent_answers": 3}, (True, 3)),
        ({"llm_beams": True}, (True, 5)),
        ({"intent_answers": 1}, (False, 1)),
        ({"llm_beams": False}, (False, 1)),
        ({"llm_beams": False, "intent_answers": 2}, (False, 2)),
        ({"views_in_one_call": True}, (False, 1)),
        ({"llm_backend": "vllm"}, (False, 1)),
        ({"llm_backend": "ray"}, (True, 5)),
        ({"llm_backend": "ray", "ray_backend": "vllm"}, (False, 1)),
        ({"llm": "smollm2-135m-instruct"}, (False, 1)),
    ],
)
def test_a_tuned_llm_is_asked_as_its_folder_says_where_nothing_else_was_given(settings_for, tmp_path, given, asked):
    (tmp_path / "tuned").mkdir()
    made = {"part": "llm", "asked": {"llm_beams": True, "intent_answers": 5, "llm_url": "http://elsewhere"}}
    (tmp_path / "tuned" / "finetune.json").write_text(json.dumps(made))
    settings = settings_for(**{"llm": "./tuned", "llm_backend": "transformers"} | given)
    assert (settings["llm_beams"], settings["intent_answers"]) == asked
    assert settings["llm_url"] == settings_for()["llm_url"]  # a folder says nothing else


def test_a_tuned_llm_is_judged_and_asked_for_its_likeliest_titles(tuning, tmp_path, settings_for):
    options = replace(OPTIONS, out=tmp_path / "tuned", epochs=1, max_examples=16, check_sessions=5)
    said = finetune(tuning | {"llm_max_new_tokens": 4}, options)
    assert "intents of its 20 likeliest titles on 5 validation sessions" in said
    given = {key: tuning[key] for key in ("atomic_path", "llm_backend", "llm_device")}
    settings = settings_for(llm=str(options.out), llm_max_new_tokens=4, **given)
    asked = {key: infer(settings).intents.settings[key] for key in ("llm_titles", "intent_answers", "intent_k_max")}
    assert asked == {"llm_titles": "catalogue", "intent_answers": 20, "intent_k_max": 20}


def test_a_backend_that_searches_no_beams_judges_by_single_answers(tuning, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "judge", lambda settings, *_: asked.append((settings["llm_beams"], settings["intent_answers"])))
    monkeypatch.setattr(run, "describe", lambda *_: "")
    for backend in ("transformers", "vllm"):
        finetune(
            tuning | {"llm_backend": backend},
            replace(OPTIONS, out=tmp_path / "tuned", epochs=1, max_examples=16, check_sessions=4),
        )
    assert asked == [(True, 20)] * 2 + [(False, 1)] * 2


def test_contrast_equals_brute_force_with_the_items_of_the_session_left_out(tuning):
    pairs = training_pairs(tuning, 40, 20, 1)
    texts = contrast.texts_of(tuning, pairs)
    model, tokenizer = resolve(tuning["encoder"], "encoder").load_encoder(torch.device("cpu"))
    queries = [(pair, contrast.session_query(texts, pairs.clicks(pair))) for pair in range(len(pairs))]
    tuned = contrast.ContrastiveEncoder(model, tokenizer, texts, pairs, queries, batch=1000)
    held_out = [pair for pair in range(len(pairs)) if pairs.held_out[pair]]
    encoder = Encoder(tuning["encoder"], device="cpu")
    candidates = sorted({int(pairs.target[pair]) for pair in held_out})
    losses = []
    for pair in held_out:
        (query,) = encoder.encode(["; ".join(texts[click] for click in pairs.clicks(pair)[-5:])])
        own, session = int(pairs.target[pair]), set(pairs.clicks(pair))
        scores = {
            item: float(encoder.encode([texts[item]])[0] @ query) / 0.05
            for item in candidates
            if item == own or item not in session
        }
        losses.append(math.log(sum(math.exp(score - scores[own]) for score in scores.values())))
    assert tuned.held_out_loss() == pytest.approx(np.mean(losses), rel=2e-2)  # in bfloat16 where the processor has it
    assert any(set(pairs.clicks(pair)) & set(candidates) - {int(pairs.target[pair])} for pair in held_out)


def test_a_tuned_encoder_is_better_and_makes_item_vectors_and_intents(tuning, tmp_path):
    options = replace(OPTIONS, part="encoder", out=tmp_path / "tuned", epochs=6, batch=16, learning_rate=0.003, max_examples=0)
    finetune(tuning, options)
    made = json.loads((options.out / "finetune.json").read_text())
    assert made["result"]["best"] < made["result"]["first"]
    other = Settings(tuning) | {
        "encoder": str(options.out),
        "intent_source": "session_text",
        "atomic_path": str(tmp_path / "other"),
    }
    prepare(other)
    found = infer(other)
    assert "tuned" in found.items.models["encoder"]


def test_a_model_tuned_for_another_split_is_refused_by_every_verb_that_would_use_it(tuning, tmp_path):
    for part in ("llm", "encoder"):
        options = replace(OPTIONS, part=part, out=tmp_path / part, epochs=1, max_examples=16)
        finetune(tuning, options)
        other = Settings(tuning) | {"split": "paper", part: str(options.out), "atomic_path": str(tmp_path / f"other-{part}")}
        prepare(other)
        with pytest.raises(UserError, match=r"was tuned on 'tiny' \(split 'temporal'\), and [\d,]+ of the [\d,]+ rows"):
            infer(other)
        with pytest.raises(UserError, match="was tuned on"):
            finetune(other, replace(options, out=tmp_path / "further"))
    shutil.rmtree(tmp_path / "llm")
    wider = Settings(tuning) | {
        "split_ratio": [0.9, 0.05, 0.05],
        "encoder": str(tmp_path / "encoder"),
        "intent_source": "session_text",
    }
    wider |= {"atomic_path": str(tmp_path / "wider"), "min_item_count": 1}
    prepare(wider)
    infer(wider)  # all that was read is in the training part here too
    (tmp_path / "encoder" / "examples.txt").write_text("")
    with pytest.raises(UserError, match="is missing or was changed"):
        infer(
            wider | {"atomic_path": str(tmp_path / "once more")}
            if prepare(wider | {"atomic_path": str(tmp_path / "once more")})
            else {}
        )


class Quadratic:
    """Not a model: a parameter drawn to a number for each pair, with noise from torch."""

    what = "loss"

    def __init__(self, pairs, best=0.0):
        self.weight = torch.nn.Parameter(torch.full((3,), 5.0))
        self.lengths, self._best = list(range(pairs)), best
        self.seen = []

    def parameters(self):
        return [self.weight]

    def step(self, pairs):
        self.seen += list(pairs)
        loss = (self.weight - torch.tensor(pairs).float().mean() / 100 + 0.01 * torch.randn(3)).pow(2).sum()
        loss.backward()
        return Step(float(loss), len(pairs))

    def held_out_loss(self):
        return float((self.weight.detach() - self._best).abs().sum())


PLAN = Plan(pairs=50, epochs=3, batch=8, learning_rate=0.3, checks=2, patience=100, seed=3)


def test_a_model_that_was_tuned_twice_knows_the_rows_of_both_times(tuning, tmp_path):
    first = replace(OPTIONS, part="encoder", out=tmp_path / "a", epochs=1, max_examples=16)
    finetune(tuning, first)
    finetune(tuning | {"encoder": str(first.out)}, replace(first, out=tmp_path / "b", max_examples=4, seed=7))
    of_first, of_both = rows_read(str(first.out)), rows_read(str(tmp_path / "b"))
    assert of_first <= of_both
    assert len(of_first) > 16  # with those that are held out


def test_every_pair_is_seen_once_an_epoch_in_another_order():
    epochs = [PLAN.batches(epoch, list(range(50))) for epoch in range(2)]
    assert all(sorted(pair for batch in each for pair in batch) == list(range(50)) for each in epochs)
    assert epochs[0] != epochs[1] and [len(each) for each in epochs[0]] == [8] * 6 + [2]
    assert sum(map(PLAN.checked, range(1, PLAN.steps + 1))) == 6 and PLAN.checked(PLAN.steps)
    assert PLAN.rate(0) == pytest.approx(0.3) and PLAN.rate(PLAN.steps - 1) < 0.01


def test_the_best_weights_are_kept_and_tuning_ends_when_nothing_gets_better(tmp_path):
    model = Quadratic(50, best=4.0)
    state = tune(model, replace(PLAN, epochs=30, patience=2), {}, tmp_path)
    assert state.done < 30 * 7 and state.bad == 2 and 0 < state.best < state.first
    assert model.held_out_loss() == pytest.approx(state.best)


def test_a_run_that_was_killed_at_any_step_ends_like_one_that_was_not(tmp_path, monkeypatch):
    whole = Quadratic(50)
    end = tune(whole, PLAN, {"a": 1}, tmp_path / "whole")
    monkeypatch.setattr("recbole_llm4sbr.finetune.loop._SAVE_EVERY", 0.0)
    for killed_at in (1, 4, 2, 6, 5):  # steps of each run; before them 0, 0, 3, 4 and 9 are done
        model = Quadratic(50)
        steps = 0

        def step(pairs, model=model, killed_at=killed_at):
            nonlocal steps
            steps += 1
            if steps == killed_at:
                raise KeyboardInterrupt
            return Quadratic.step(model, pairs)

        model.step = step
        with pytest.raises(KeyboardInterrupt):
            tune(model, PLAN, {"a": 1}, tmp_path / "killed")
    last = Quadratic(50)
    state = tune(last, PLAN, {"a": 1}, tmp_path / "killed")
    assert torch.equal(whole.weight, last.weight)
    assert (state.done, state.best, state.best_step) == (end.done, end.best, end.best_step)
    with pytest.raises(UserError, match="interrupted and had other settings: a was 1, now 2"):
        tune(Quadratic(50), PLAN, {"a": 2}, tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [16, 0])
def test_the_verb_killed_five_times_writes_the_weights_of_an_undisturbed_run(tuning, tmp_path, monkeypatch, rank):
    monkeypatch.chdir(tmp_path)
    given = [
        "data_path",
        "atomic_path",
        "encoder",
        "llm",
        "llm_backend",
        "min_item_count",
        "session_rule",
        "session_gap",
        "repeatable",
    ]
    command = [
        sys.executable,
        "-m",
        "recbole_llm4sbr.cli",
        "finetune",
        "--dataset=tiny",
        "--llm_device=cpu",
        "--check_sessions=0",
        f"--lora_rank={rank}",
    ]
    command += ["--epochs=8", "--batch=4", "--checks=10", "--patience=10000", *(f"--{key}={tuning[key]}" for key in given)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--part=llm", "--out=whole"], check=True, env=environment)
    history = tmp_path / "killed" / "tuning" / "history.jsonl"
    for kills in range(1, 6):
        process = subprocess.Popen([*command, "--part=llm", "--out=killed"], env=environment)
        until = time.time() + 120
        while (
            (not history.is_file() or len(history.read_text().splitlines()) < 3 * kills)
            and process.poll() is None
            and time.time() < until
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        with pytest.raises(UserError, match="tuning was interrupted there"):
            resolve("./killed", "llm")
    subprocess.run([*command, "--part=llm", "--out=killed"], check=True, env=environment)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()
    assert resolve("./whole", "llm").identity.split("(")[1] == resolve("./killed", "llm").identity.split("(")[1]


def test_the_table_judges_validation_sessions_by_the_model_alone(tuning):
    rows = sample(tuning, 7)
    valid = {session: (prefix, target) for session, prefix, target in session_rows(dataset_folder(tuning), "tiny", "valid")}
    assert len(rows.ids) == 7
    for row, session in enumerate(rows.ids):
        assert (rows.prefix(row), rows.tokens[rows.targets[row]]) == valid[session]
    settings = Settings(tuning) | {"intent_source": "session_text", "repeatable": False}
    quality = judge(settings, rows, Encoder(tuning["encoder"], device="cpu"))
    assert [(each.view, each.sessions, each.inside) for each in quality.views] == [("long", 7, None), ("short", 7, None)]
    named = titles(settings)
    vectors = dict(
        zip(
            named,
            Encoder(tuning["encoder"], device="cpu").encode(
                [f"{name} ({1950 + int(token[1:])})" for token, name in named.items()]
            ),
        )
    )
    for view, window in (("long", None), ("short", 3)):
        hits = []
        for prefix, target in (valid[session] for session in rows.ids):
            mean = np.mean([vectors[token] for token in (prefix[-window:] if window else prefix)], 0)
            ranked = sorted(
                (token for token in vectors if token not in prefix), key=lambda token: -float(vectors[token] @ mean)
            )
            hits.append(target in ranked[:5])
        assert next(each for each in quality.views if each.view == view).hit(5) == pytest.approx(np.mean(hits), abs=1e-4)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--llm=x"], "finetune needs --out"),
        (["--out=o", "--llm=x", "--encoder=y"], "add --part=llm or --part=encoder"),
        (["--out=o", "--part=encoders"], "did you mean 'encoder'"),
        (["--out=o", "--intent_answers=3", "--prompt=movies"], "one title per question"),
        (["--out=o", "--llm_backend=openai"], "has no weights here to tune"),
        (["--out=o", "--item_name={nothing}"], "no text column 'nothing'"),
        (["--out=o", "--item_text={nothing}", "--part=encoder"], "no text column 'nothing'"),
        (["--out=o", "--batch_tokens=1000000000"], "of memory"),
        (["--out=o", "--llm=./nothing"], "there is no such folder"),
        (["--out=full"], "was not made by `finetune`"),
        (["--out=searched"], "was not made by `finetune`"),
        (["--out=-"], "--out='-' is no folder"),
        (["--out=o", "--quantize"], "bitsandbytes"),
        (["--out=o", "--part=encoder", "--answers"], "has not been asked about the training sessions yet"),
    ],
)  # fmt: skip
def test_bad_input_ends_before_anything_is_tuned(tuning, tmp_path, monkeypatch, capsys, typed, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "searched" / "tuning").mkdir(parents=True)  # as `tune` calls its folder
    (tmp_path / "searched" / "tuning" / "search.json").write_text("{}")
    given = ["data_path", "atomic_path", "min_item_count", "session_rule", "session_gap", "repeatable", "item_text"]
    given += [] if any(each.startswith(("--llm=", "--llm_backend")) for each in typed) else ["llm"]
    given += [] if any(each.startswith("--encoder") for each in typed) else ["encoder"]
    part = [] if any(each.startswith(("--part", "--encoder")) for each in typed) else ["--part=llm"]
    settings = [f"--{key}={tuning[key]}" for key in given if not any(each.startswith(f"--{key}=") for each in typed)]
    assert main(["finetune", "--dataset=tiny", *part, *settings, *typed]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "o").exists()


def test_a_training_part_with_nothing_to_hold_out_is_refused(tuning, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "few.item").write_text("item_id:token\ttitle:token_seq\tyear:token\na\tone\t1\nb\ttwo\t2\n")
    clicks = "".join(f"u{user}\ta\t1\nu{user}\tb\t2\n" for user in range(10))
    (tmp_path / "few" / "few.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + clicks)
    settings = Settings(tuning) | {"dataset": "few", "data_path": str(tmp_path), "min_item_count": 1, "split": "paper"}
    with pytest.raises(UserError, match=r"has \d+ training rows, too few to tune on"):
        finetune(settings, replace(OPTIONS, out=tmp_path / "o"))


def test_a_dry_run_shows_an_example_and_tunes_nothing(tuning, tmp_path):
    said = finetune(Settings(tuning) | {"dry_run": True}, replace(OPTIONS, out=tmp_path / "o"))
    assert (
        said.startswith("60 pairs of a session and its next item to tune on, ")
        and "[" in said
        and not (tmp_path / "o").exists()
    )
