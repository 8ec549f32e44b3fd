"""Small worlds for tests: a raw atomic dataset, a tiny encoder and a tiny language model, all made here, none of them real."""

import os
import random
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch

from recbole_llm4sbr.base.settings import load_settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes of tests, and what they start, take a thread each: more would wait for each other on two cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

# Models of RecBole that are adapted as those beside them are, and seldom used: the tests of every model take half a minute more with them.
SELDOM = {"FDSA", "FEARec", "GCSAN", "GRU4RecF", "LightSANs", "NextItNet", "SASRecF", "SINE"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests with a seldom used model for their `name` are slow ones."""
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("name") in SELDOM:
            item.add_marker(pytest.mark.slow)


WORDS = [
    "red",
    "green",
    "blue",
    "old",
    "new",
    "small",
    "great",
    "silent",
    "golden",
    "lost",
    "river",
    "house",
    "night",
    "king",
    "garden",
    "stone",
    "winter",
    "road",
    "sea",
    "star",
]


def title(number: int) -> str:
    return f"{WORDS[number % 20]} {WORDS[(number * 7 + 3) % 20]} {WORDS[(number * 3 + 11) % 20]} {number}"


@pytest.fixture(scope="session", autouse=True)
def working_folder(tmp_path_factory):
    """A folder that may be written to, for what tests of a module train together: the checkout may not."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("working"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Folder with the raw dataset `tiny`: 40 users, 30 items, sessions a day apart."""
    rng = random.Random(7)
    folder = tmp_path_factory.mktemp("raw") / "tiny"
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(40):
        for day in range(rng.randint(2, 4)):
            start, item = user * 5000 + day * 86400, rng.randrange(30)
            for click in range(rng.randint(2, 9)):
                item = (item + rng.choice([1, 1, 2, 5])) % 30
                lines.append(f"u{user}\tm{item}\t{start + click * 20}")
    (folder / "tiny.inter").write_text("\n".join(lines) + "\n")
    items = ["item_id:token\ttitle:token_seq\tyear:token"] + [f"m{n}\t{title(n)}\t{1950 + n}" for n in range(30)]
    (folder / "tiny.item").write_text("\n".join(items) + "\n")
    return folder.parent


def file_of(settings, name):
    """Path of a prepared or feature file of a run: an LLM's intents stand in a folder of their own."""
    from recbole_llm4sbr.data.folders import dataset_folder, intents_folder

    folder = dataset_folder(settings)
    own = name.endswith((".sessemb", ".intentemb")) or name in ("infer.json", "failures.jsonl")
    return (intents_folder(folder, settings) if own else folder) / name


def session_rows(folder, name, *parts):
    """(session id, prefix, target) of every row, read as plain text."""
    rows = []
    for part in parts:
        for line in (folder / f"{name}.{part}.inter").read_text().splitlines()[1:]:
            session, prefix, target = line.split("\t")
            rows.append((session, prefix.split(" "), target))
    return rows


def make_tokenizer(chat: bool):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]", *map(chr, range(33, 127)), "Ċ"]
    inner = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    if chat:
        tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    return tokenizer


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """Folder of a BERT with random weights over single characters."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    tokenizer = make_tokenizer(chat=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=200,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory):
    """Folder of a Llama with random weights over single characters, with a chat template."""
    return make_llm(tmp_path_factory.mktemp("llm"), make_tokenizer(chat=True))


@pytest.fixture(scope="session")
def byte_llm(tmp_path_factory):
    """The same with a tokenizer as Llama 2 and Mistral have it: words begin with a bar, and what is no piece is bytes, as `<0x0A>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "<unk>", "<s>", "[SEP]", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="<unk>", eos_token="</s>")
    return make_llm(tmp_path_factory.mktemp("byte_llm"), tokenizer)


def make_llm(folder, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=2, eos_token_id=4, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def given(raw, tiny_encoder):
    """Settings of the dataset `tiny` that differ from our defaults."""
    return {
        "data_path": str(raw), "encoder": tiny_encoder, "llm_backend": "echo", "min_item_count": 2, "gpu_id": "", "epochs": 1,
        "embedding_size": 8, "hidden_size": 8, "show_progress": False, "train_batch_size": 32, "item_text": "{title} ({year})",
        "MAX_ITEM_LIST_LENGTH": 12, "repeatable": True, "session_rule": "bucket", "session_gap": 600,
    }  # fmt: skip


@pytest.fixture
def settings_for(given, tmp_path, monkeypatch):
    """Settings of the dataset `tiny`, everything written under tmp_path: `settings_for(model="NARM", epochs=1)`."""
    monkeypatch.chdir(tmp_path)

    def make(**changed):
        return load_settings(dataset="tiny", overrides=given | {"atomic_path": str(tmp_path / "atomic")} | changed)

    return make


@pytest.fixture(scope="session")
def made(given, tmp_path_factory):
    """An atomic_path with `tiny` after prepare and infer with the echo backend, which is no language model."""
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.intent.infer import infer

    folder = tmp_path_factory.mktemp("made")
    settings = load_settings(dataset="tiny", overrides=given | {"atomic_path": str(folder)})
    prepare(settings)
    infer(settings)
    return folder


@pytest.fixture
def tiny(settings_for, made):
    """Settings of `tiny` with its own copy of the prepared and feature files."""
    settings = settings_for()
    shutil.copytree(made, settings["atomic_path"])
    return settings


@pytest.fixture(scope="module")
def one_thread():
    """One thread of torch for a module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ray_cluster():
    """Ray on this machine, once for a module: starting it takes seconds."""
    import ray

    from recbole_llm4sbr.base.cluster import connect

    connect(None, num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Chromium: Playwright's own, or the one that the variable CHROMIUM names; tests are left out where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu"]
        try:
            chromium = started.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=arguments)
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()
