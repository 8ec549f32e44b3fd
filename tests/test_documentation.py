"""Documentation that cannot rot: every fenced block is parsed, and runs or says why not; links lead to files and headings that there are.

A comment in the line before a block says how it is treated (CONTRIBUTING.md, "Documentation"). Blocks without one run here, made small:
one epoch, a tiny encoder, grids as dry runs. Under `-m llm` the commands of the README and of the quick start run as they are typed.
"""

import ast
import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from recbole_llm4sbr import __version__
from recbole_llm4sbr.base.schema import load_yaml, model_schema, models_with_settings, schema
from recbole_llm4sbr.base.settings import check_keys, load_settings, recbole_keys
from recbole_llm4sbr.cli.main import VERBS, main
from recbole_llm4sbr.cli.parsing import parse_arguments
from recbole_llm4sbr.experiment.variants import EnsembleName, make_variant

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
AS_TYPED = ("README.md", "docs/quickstart.md")
LANGUAGES = {"bash", "python", "yaml", "text", "bibtex"}
OURS = (["recbole-llm4sbr"], ["python", "run_recbole_llm4sbr.py"])
GRIDS = ("compare", "ablate", "tune")
BLOCK = re.compile(r"(?:^<!-- (?P<how>[\w ]+): (?P<why>[^\n]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and how it is treated."""

    page: str
    line: int
    language: str
    text: str
    how: str
    why: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a bash block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [
            shlex.split(part, comments=True) for line in lines for part in re.split(r"&&(?=(?:[^']*'[^']*')*[^']*$)", line)
        ]
        return [each for each in words if each]

    @property
    def of_ours(self) -> list[list[str]]:
        """What follows `recbole-llm4sbr` in each command of this package."""
        return [words[len(ours) :] for words in self.commands for ours in OURS if words[: len(ours)] == ours]


def blocks_of(path):
    page = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        yield Block(page, line, found["language"], found["text"], found["how"] or "", found["why"] or "")


BLOCKS = [block for path in PAGES for block in blocks_of(path)]


def these(language, *how):
    chosen = [block for block in BLOCKS if block.language == language and block.how in how]
    return pytest.mark.parametrize("block", chosen, ids=[block.place for block in chosen])


def test_every_fence_is_found_and_every_comment_is_understood():
    assert sum(path.read_text().count("```") for path in PAGES) == sum(2 + block.text.count("```") for block in BLOCKS)
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert {block.how for block in BLOCKS} <= {"", "slow", "llm", "not run", "excerpt"}
    assert len(BLOCKS) > 40


@these("bash", "", "slow", "llm", "not run")
def test_a_command_is_known_to_the_parser_with_its_options_and_settings(block):
    for words in block.of_ours:
        check_command(words)
    for words in block.commands:
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
        if words[0] == "pip":
            check_extras(words)


def test_commands_inside_sentences_and_tables_are_known_to_the_parser():
    seen = 0
    for path in PAGES:
        for text in re.findall(
            r"`((?:recbole-llm4sbr|python (?:run_recbole|benchmarks/|docs/)[^\s`]+) [^`]+)`", path.read_text()
        ):
            words = shlex.split(text.replace("[", " ").replace("]", " "))
            if words[0] == "python":
                assert (ROOT / words.pop(1)).is_file(), text
            if not {"--help", "VERB", "verb"} & set(words) and "benchmarks/" not in text:
                check_command(words[1:])
                seen += 1
    assert seen >= 4


def check_command(words):
    """Refuse what the command line would refuse before it looks at data."""
    verb = VERBS[words[0] if words and not words[0].startswith("-") else ""]
    typed = parse_arguments(verb, words[1:] if verb.name else words)
    settings = dict(typed.settings)
    if verb.name in ("recommend", "serve", "ensemble", "inspect", "answers", "report", "import"):
        check_keys(settings, str(settings.get("model", "SRGNN")))
        return
    for model in typed.options.get("models") or [settings.pop("model", None)]:
        for dataset in typed.options.get("datasets") or [settings.pop("dataset", None) or "ml-100k"]:
            known = [path for path in typed.config_files if Path(path).is_absolute()]  # the others are a user's own
            load_settings(model, dataset, known, settings)
    for name in typed.options.get("variants") or ():
        if EnsembleName.read(name) is None:
            make_variant(name, "SRGNN")


def check_extras(words):
    """Refuse extras that setup.cfg does not have."""
    known = set(re.findall(r"^(\w+) =$", (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1], re.M))
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= known


@these("python", "", "slow", "llm", "not run")
def test_python_compiles_and_its_imports_are_there(block):
    for node in ast.walk(ast.parse(block.text, block.place)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, each.name) for each in node.names), block.place
        elif isinstance(node, ast.Import):
            for each in node.names:
                importlib.import_module(each.name)


@these("yaml", "", "not run")
def test_yaml_holds_settings_that_there_are(block):
    settings = load_yaml(block.text)
    load_settings(settings.pop("model", None), settings.pop("dataset", "ml-100k"), (), settings)


@these("yaml", "excerpt")
def test_an_excerpt_stands_in_its_file(block):
    lines = {line.strip() for line in (ROOT / block.why).read_text().splitlines()}
    for line in block.text.splitlines():
        start, dots, _ = line.strip().partition("...")
        assert any(each.startswith(start) if dots else each == start for each in lines), line


def test_the_two_citations_name_the_same_paper_and_the_version_is_this_ones():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (entry,) = [block.text for block in BLOCKS if block.language == "bibtex"]
    paper = cited["preferred-citation"]
    authors = " and ".join(f"{each['family-names']}, {each['given-names']}" for each in paper["authors"])
    assert f"{{{paper['title']}}}" in entry
    assert f"{{{authors}}}" in entry
    assert paper["url"] in entry
    assert cited["version"] == __version__


# Links, as GitHub resolves them; the site's are checked by its strict build (tests/test_site.py).

LINK = re.compile(r"\]\((?P<path>[^)\s#:]*)(?:#(?P<anchor>[^)\s]+))?\)|src(?:set)?=\"(?P<source>[^\":]+)\"")


def anchors(path):
    """Anchors of the headings of a page, as GitHub makes them."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    titles = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)]
    return {title for title in titles}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "results" / "README.md"], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_of_the_repository(path):
    text = re.sub(r"`[^`\n]+`", "", BLOCK.sub("", path.read_text(encoding="utf-8")))
    for link in LINK.finditer(text):
        target = path.parent / (link["path"] or link["source"] or path.name)
        assert target.exists(), f"{path.name}: {link[0]}"
        if link["anchor"] and target.suffix == ".md":
            assert link["anchor"] in anchors(target), f"{path.name}: {link[0]}"


# Blocks that run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder as a user's: beside the documentation's commands nothing but a link to the checkout's own files."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("docs", "benchmarks", "properties", "run_recbole_llm4sbr.py"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="module")
def small(tiny_encoder):
    """Settings that make a run small, for all that is not typed."""
    tiny = {"embedding_size": "8", "hidden_size": "8", "train_batch_size": "2048", "epochs": "1"}
    return tiny | {"encoder": tiny_encoder, "gpu_id": "", "llm_backend": "echo", "show_progress": "false"}


@pytest.fixture(scope="module")
def trained(folder, small):
    """The checkpoints that the pages speak of: SR-GNN on ml-100k, plain and enhanced, and the shop's files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for names, given in (
            (["plain.pth", "a.pth"], {"llm4sbr": "false"}),
            (["enhanced.pth", "llm4sbr.pth", "b.pth", "saved/SRGNN-ml-100k/SRGNN.pth"], {}),
        ):
            settings = small | {"model": "SRGNN", "dataset": "ml-100k", "checkpoint_dir": "made"} | given
            assert main([f"--{key}={value}" for key, value in settings.items()]) == 0
            (checkpoint,) = Path("made").glob("*/*.pth")
            for name in names:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(checkpoint, name)
            shutil.rmtree("made")
        subprocess.run([sys.executable, "docs/own_data_example.py"], check=True)


def made_small(words, small):
    """A command's words with the settings that make it small; what is typed stays."""
    verb = VERBS[words[0] if not words[0].startswith("-") else ""]
    if not verb.takes_settings or verb.name in ("recommend", "serve", "ensemble", "inspect", "answers"):
        return words
    more = small | ({"dry_run": "true"} if verb.name in GRIDS else {})
    typed = {word[2:].partition("=")[0] for word in words}
    return [*words, *(f"--{key}={value}" for key, value in more.items() if key not in typed)]


@pytest.fixture(scope="module")
def ran():
    """Commands that have run, which several pages have."""
    return []


@these("bash", "")
def test_a_block_of_commands_runs(block, folder, small, trained, ran, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for words in block.commands:
        ours = [words[len(start) :] for start in OURS if words[: len(start)] == start]
        if ours:
            if ours[0] not in ran:
                ran.append(ours[0])
                assert main(made_small(ours[0], small)) == 0, capsys.readouterr().err
        else:
            command = [sys.executable if words[0] == "python" else words[0], *words[1:]]
            subprocess.run(shlex.join(command).replace("'>'", ">"), shell=True, check=True)


def run_python(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["python"])
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})


@these("python", "")
def test_a_block_of_python_runs(block, folder, trained, monkeypatch):
    run_python(block, folder, monkeypatch)


@pytest.mark.slow
@these("python", "slow")
def test_a_slow_block_of_python_runs(block, folder, trained, monkeypatch):
    run_python(block, folder, monkeypatch)


@pytest.mark.llm
@these("python", "llm")
def test_a_block_of_python_runs_with_the_embedded_models(block, folder, monkeypatch):
    run_python(block, folder, monkeypatch)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder of a reader who types what the pages say, with `python` and `recbole-llm4sbr` as the installed package has them."""
    place = tmp_path_factory.mktemp("typed")
    for name in ("docs", "run_recbole_llm4sbr.py"):
        (place / name).symlink_to(ROOT / name)
    commands = place / "bin"
    commands.mkdir()
    for name, does in (("python", sys.executable), ("recbole-llm4sbr", f"{sys.executable} -m recbole_llm4sbr.cli")):
        (commands / name).write_text(f'#!/bin/sh\nexec {does} "$@"\n')
        (commands / name).chmod(0o755)
    return place


@pytest.mark.llm
@pytest.mark.parametrize(
    "block",
    [each for each in BLOCKS if each.page in AS_TYPED and each.language == "bash" and not each.how],
    ids=lambda block: block.place,
)
def test_a_block_of_commands_runs_as_it_is_typed(block, reader):
    """In order, in one folder; the checkpoint of the README's first command is what its later ones name."""
    named = reader / "saved" / "SRGNN-ml-100k" / "SRGNN.pth"
    if not named.exists() and (found := sorted(reader.glob("saved/SRGNN-ml-100k-*/SRGNN.pth"))):
        named.parent.mkdir()
        shutil.copy(found[0], named)
    environment = os.environ | {"PATH": f"{reader / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-ec", block.text], cwd=reader, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_is_shown_as_it_is_on_the_reference_pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    assert doctest.testmod(importlib.import_module("site_reference")) == (0, 1)


def test_what_a_page_names_with_two_hyphens_is_a_setting_or_an_option():
    known = {option.name for verb in VERBS.values() for option in verb.options} | set(schema()) | {"key"}
    for model in models_with_settings():
        known |= set(model_schema(model)) | recbole_keys(model)
    for path in PAGES:
        assert set(re.findall(r"--([a-z]\w+)=", BLOCK.sub("", path.read_text()))) <= known, path.name


def test_the_readmes_overview_is_that_of_the_reports():
    rows = [line for line in (ROOT / "results/overview.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 3 and "\n".join(rows) in (ROOT / "README.md").read_text()
