"""Every setting decides what the schema says: changed alone, it changes exactly those artefacts."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding, intents_of
from recbole_llm4sbr.base.schema import ARTEFACTS, Setting, describe_settings, model_schema, models_with_settings, schema
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.folders import dataset_folder, intents_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.item_vectors import encode_items
from recbole_llm4sbr.training.run import train

# key: (another value, other settings under which it decides something)
PREPARED = {
    "session_rule": ("user", {}),
    "session_gap": (40, {}),
    "MAX_ITEM_LIST_LENGTH": (2, {}),
    "split": ("paper", {}),
    "split_ratio": ([0.6, 0.2, 0.2], {}),
    "min_session_length": (4, {}),
    "min_item_count": (20, {}),
    "cold_items": (True, {"min_item_count": 20}),
    "user_column": ("user_2", {}),
    "item_column": ("item_2", {}),
    "time_column": ("time_2", {}),
    "session_column": ("session_2", {"session_rule": "column", "user_column": None}),
    "list_column": ("list_2", {"session_rule": "rows", "list_column": "list_1"}),
    "split_column": ("part_2", {"split": "given", "split_column": "part_1"}),
}
ITEMS = {"item_text": ("{title}", {}), "article_last": (True, {}), "encoder": ("another encoder", {})}
INTENTS = {
    "repeatable": (False, {}),
    "views": (["long"], {}),
    "item_name": ("{title} {year}", {}),
    "item_name_length": (8, {}),
    "intent_refresh": ("powers", {}),
    "max_sessions": (20, {}),
    "intent_k_max": (6, {}),
    "intent_answers": (3, {}),
}
TRAINING = {
    "model": ("GRU4Rec", {}),
    "llm4sbr": (False, {}),
    "intent_source": ("random", {}),
    "fusion": ("residual", {}),
    "intent_k": (2, {}),
    "intent_weighting": ("softmax", {}),
    "items": ("text", {}),
    "item_init": ("text", {}),
    "similarity": ("cosine", {}),
    "temperature": (0.5, {"similarity": "cosine"}),
    "intent_lambda": (1.0, {}),
    "epochs": (2, {}),
    "train_batch_size": (16, {}),
    "learning_rate": (0.01, {}),
    "learning_rate_step": (1, {"epochs": 2}),
    "learning_rate_decay": (0.5, {"epochs": 2, "learning_rate_step": 1}),
    "weight_decay": (0.1, {}),
    "embedding_dropout": (0.5, {}),
    "session_dropout": (0.5, {}),
    "label_smoothing": (0.3, {}),
    "embedding_size": (12, {}),
    "train_targets": ("last", {}),
    "eval_targets": ("all", {}),
    "eval_every": (20, {}),
    "metrics": (["Hit"], {"valid_metric": "Hit@20"}),
    "topk": ([20], {}),
    "valid_metric": ("Hit@5", {}),
    "metric_decimal_place": (2, {}),
    "seed": (7, {}),
    "learner": ("sgd", {}),
    "eval_step": (2, {"epochs": 2}),
    "clip_grad_norm": ({"max_norm": 0.001}, {}),
}
RUN = {
    "eval_batch_size": (7, {}),
    "llm_batch_tokens": (512, {}),
    "vllm_tensor_parallel": (2, {}),
    "vllm_dtype": ("float32", {}),
    "vllm_memory": (0.5, {}),
    "vllm_max_tokens": (4096, {}),
    "llm_concurrency": (2, {}),
    "llm_timeout": (9.0, {}),
    "llm_retries": (1, {}),
    "llm_batch_wait": (60.0, {}),
    "llm_prices": ([1.0, 2.0], {}),
    "ray_address": ("auto", {}),
    "ray_workers": (1, {}),
    "ray_cpus_per_worker": (1, {}),
    "max_failure_rate": (0.5, {}),
    "use_gpu": (False, {}),
    "state": ("error", {}),
    "dry_run": (True, {}),
    "rebuild": (True, {}),
    "checkpoint_dir": ("elsewhere", {}),
    "result_file": ("r.json", {}),
    "show_progress": (True, {}),
}
# What a small world cannot show in its files; for these the manifests' and cells' settings alone are looked at.
IN_SETTINGS_ONLY = {
    "missing_item_text": ("unknown", {}),
    "encoder_batch_size": (3, {}),  # the encoder's last digits depend on the padding of its batches
    "prompt": ("products", {}),
    "views_in_one_call": (True, {}),
    "llm": ("another", {}),
    "llm_backend": ("transformers", {}),
    "llm_max_new_tokens": (9, {}),
    "llm_url": ("http://h/v1", {"llm_backend": "openai"}),
    "llm_name": ("n", {"llm_backend": "openai"}),
    "llm_beams": (True, {"intent_answers": 3}),
    "llm_titles": ("new", {"intent_answers": 3, "llm_beams": True}),
    "llm_extra": ({"top_p": 0.5}, {"llm_backend": "openai"}),
    "llm_json": (False, {"llm_backend": "openai", "intent_answers": 3}),
    "faiss_index": ("HNSW8", {}),
    "control_of": ("session_text", {"intent_source": "shuffled", "llm4sbr": True}),
    "stopping_step": (2, {}),
    "hidden_size": (12, {}),
    "train_neg_sample_args": ({"distribution": "uniform"}, {}),
    "nproc": (2, {}),
    "llm_device": ("cpu", {}),
    "llm_refresh": (True, {}),
    "llm_batch": (True, {}),
    "ray_backend": ("vllm", {}),
    "data_path": ("x", {}),
    "atomic_path": ("x", {}),
    "gpu_id": ("1", {}),
    "worker": (1, {}),
    "loss_type": ("CE", {}),
    "load_col": ({"item": ["item_id"]}, {}),
    "log_wandb": (True, {}),
    "wandb_project": ("x", {}),
    "config_files": ("x.yaml", {}),
    "dataset": ("other", {}),
    "session_targets": ("last", {}),
}
IN_FILES = {"prepared": PREPARED, "items": ITEMS, "intents": INTENTS, "training": TRAINING, "run": RUN}


def test_every_setting_is_classified_and_walked():
    walked = [key for table in (*IN_FILES.values(), IN_SETTINGS_ONLY) for key in table]
    assert sorted(walked) == sorted(schema())
    for artefact, table in IN_FILES.items():
        assert {key: schema()[key].decides for key in table} == dict.fromkeys(table, artefact)


@pytest.fixture(scope="module")
def world(given, tmp_path_factory):
    """Settings over a raw dataset in which every column setting has another column to name, and a second encoder."""
    folder = tmp_path_factory.mktemp("world")
    raw = folder / "raw" / "tiny"
    raw.mkdir(parents=True)
    source = Path(given["data_path"]) / "tiny"
    head, *lines = (source / "tiny.inter").read_text().splitlines()
    rows = [head + "\tuser_2:token\titem_2:token\ttime_2:float\tsession_id:token\tsession_2:token"]
    rows[0] += "\tlist_1:token_seq\tlist_2:token_seq\tpart_1:token\tpart_2:token"
    for number, line in enumerate(lines):
        user, item, time = line.split("\t")
        rows.append(f"{line}\tv{int(user[1:]) // 2}\tm{(int(item[1:]) * 7) % 30}\t{-int(time)}\ts{number // 6}\tz{number // 4}")
        parts = ["train" if int(user[1:]) < 30 else "valid" if int(user[1:]) < limit else "test" for limit in (34, 36)]
        rows[-1] += "\t".join(["", f"m{number % 30}", f"m{number % 29} m{number % 28}", *parts])
    (raw / "tiny.inter").write_text("\n".join(rows) + "\n")
    head, *lines = (source / "tiny.item").read_text().splitlines()
    lines[0] = "m0\tLion King, The\t1994"
    (raw / "tiny.item").write_text("\n".join([head + "\titem_2:token", *(f"{x}\t{x.split(chr(9))[0]}" for x in lines)]) + "\n")
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    tokenizer = make_tokenizer(chat=False)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return given | {"data_path": str(folder / "raw"), "another encoder": str(folder / "encoder"), "folder": folder}


def files_of(settings):
    """Checksums of the prepared, item and intent files that a run makes."""
    prepared = prepare(settings)
    items, folder = encode_items(settings, prepared), dataset_folder(settings)
    intents = infer(settings, prepared).intents if intents_of(settings) != "none" else None
    sessions = b"" if intents is None else (intents_folder(folder, settings) / "tiny.sessemb").read_bytes()
    return {
        "prepared": dict(prepared.files),
        "items": dict(items.files),
        "intents": hashlib.sha256(sessions).hexdigest(),
    }


def outcome(settings):
    result = train(settings, saved=False)
    return {"training": (result.train_losses, result.valid_scores, result.best_valid_result, result.test_result)}


CASES = [(artefact, key) for artefact, table in IN_FILES.items() for key in table]
BASES: dict = {}


@pytest.mark.parametrize(("artefact", "key"), CASES, ids=[key for _, key in CASES])
def test_a_changed_setting_changes_the_first_artefact_that_it_decides_and_none_before(
    artefact, key, world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    value, context = IN_FILES[artefact][key]
    value = world.get(value, value) if isinstance(value, str) else value
    own = {name: each for name, each in world.items() if name not in ("another encoder", "folder")} | context
    place = repr(sorted(context.items()))
    trains = artefact in ("training", "run")
    if place not in BASES:
        settings = load_settings(dataset="tiny", overrides=own | {"atomic_path": str(world["folder"] / f"a{len(BASES)}")})
        BASES[place] = settings, files_of(settings)
    settings, before = BASES[place]
    before = dict(before)
    changed = load_settings(dataset="tiny", overrides=own | {"atomic_path": str(tmp_path / "a"), key: value})
    after = files_of(changed)
    if trains:
        if (place, "trained") not in BASES:
            BASES[place, "trained"] = outcome(settings)
        before, after = before | BASES[place, "trained"], after | outcome(changed)
    for each in [*before]:
        if artefact == "run" or ARTEFACTS.index(each) < ARTEFACTS.index(artefact):
            assert after[each] == before[each], f"{key} must not change {each}"
    if artefact != "run":
        assert after[artefact] != before[artefact], f"{key} must change {artefact}"


@pytest.mark.parametrize("key", [key for table in (*IN_FILES.values(), IN_SETTINGS_ONLY) for key in table])
def test_the_deciding_settings_of_an_artefact_are_those_that_the_schema_names(key):
    value, context = {name: each for table in (*IN_FILES.values(), IN_SETTINGS_ONLY) for name, each in table.items()}[key]
    usual = load_settings(dataset="ml-100k", overrides={"llm_backend": "echo"} | context)
    if usual.get(key) == value:
        usual[key] = None if value is not True else False
    for artefact in ARTEFACTS[:-1]:
        if (key, artefact) == ("control_of", "intents"):
            continue  # it chooses between the LLM's files and those of session_text, which stand side by side
        same = deciding(usual, artefact) == deciding(usual | {key: value}, artefact)
        assert same == (artefact not in (schema()[key].decides, schema()[key].also)), artefact


def test_a_setting_that_has_no_effect_in_a_run_decides_nothing_there():
    plain = load_settings(dataset="ml-100k", overrides={"llm4sbr": False})
    for key, value in (("intent_k", 1), ("intent_lambda", 3.0), ("fusion", "concat"), ("intent_source", "random")):
        assert deciding(plain, "training") == deciding(plain | {key: value}, "training")
    for key, value in (("session_column", "x"), ("llm_url", "http://x/v1"), ("temperature", 3.0)):
        assert all(deciding(plain, each) == deciding(plain | {key: value}, each) for each in ARTEFACTS)


def test_local_engines_share_their_intents_and_an_address_decides_without_its_secrets():
    settings = load_settings(dataset="ml-100k")
    assert deciding(settings, "intents") == deciding(settings | {"llm_backend": "vllm"}, "intents")
    remote = settings | {"llm_backend": "openai", "llm_url": "https://me:pw@host/v1?key=secret"}
    assert deciding(remote, "intents")["llm_url"] == "https://host/v1"


def test_the_whole_template_decides_the_intents(tmp_path):
    text = Path(__file__).parents[1].joinpath("properties/prompt/movies.yaml").read_text()
    for number, (old, new) in enumerate((("Answer with one line", "Reply with one line"), ("window: 10", "window: 9"))):
        paths = [tmp_path / f"{number}{side}.yaml" for side in "ab"]
        paths[0].write_text(text)
        paths[1].write_text(text.replace(old, new))
        a, b = (deciding(load_settings(dataset="ml-100k", overrides={"prompt": str(path)}), "intents") for path in paths)
        assert a != b
    assert a["prompt"]["views"].keys() == {"long", "short"}  # views that are not asked for decide nothing


@pytest.mark.parametrize("name", models_with_settings())
def test_settings_of_single_models_are_declared_with_help_and_checked(name):
    for key, setting in model_schema(name).items():
        assert f"--{key}=" in describe_settings()
        assert load_settings(name, "ml-100k")[key] == setting.default
        if setting.choices:
            with pytest.raises(UserError, match=f"{key}=.*choose one of"):
                load_settings(name, "ml-100k", overrides={key: "no such choice"})


@pytest.mark.parametrize(
    ("given", "says"), [({"help": "x"}, "what it decides"), ({"decides": "run"}, "no help"), ({"a": 1}, "unknown part")]
)
def test_a_declaration_that_is_not_whole_is_refused(given, says):
    from recbole_llm4sbr.base.schema import _setting

    with pytest.raises(ValueError, match=says):
        _setting("x", given, "section")
    assert isinstance(_setting("x", {"decides": "run", "help": "y", "default": 1}, "section"), Setting)
