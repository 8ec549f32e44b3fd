"""Manifests: they notice whatever was made otherwise or changed since, each file is hashed once a run, and the remedy they name works."""

import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import file_of

from recbole_llm4sbr import run_recbole_llm4sbr
from recbole_llm4sbr.base import files
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import sha256_file
from recbole_llm4sbr.data.checks import check_run_files
from recbole_llm4sbr.data.features import Localized, SessionLines
from recbole_llm4sbr.data.manifest import Manifest, setting_differences
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.training.loading import load_model
from recbole_llm4sbr.training.run import train


def test_a_manifest_says_what_was_written_and_comes_back_equal(tmp_path):
    made = Manifest(tmp_path / "m.json", "test", {"k": [1, 2]}, {"source": {"a": "1"}}, counts={"rows": 3})
    written = made.write({"x.txt": ["one\n", "two\n"], "y.txt": iter(["three\n"])})
    assert (tmp_path / "x.txt").read_text() == "one\ntwo\n"
    assert written.files["y.txt"] == hashlib.sha256(b"three\n").hexdigest()
    assert Manifest.read(tmp_path / "m.json") == written
    assert written.damage() == []
    assert written.differences({"k": [1, 2]}, {"source": {"a": "1"}}) == []
    assert written.differences({"k": [2]}, {"source": {"a": "2"}}) == [
        "k was [1, 2], now [2]",
        "the raw files are others than those it was made from",
    ]


def test_two_processes_that_make_the_same_files_both_end_well(tmp_path, monkeypatch):
    made = Manifest(tmp_path / "m.json", "test")

    def lines():  # the other process begins after this one and ends before it
        with monkeypatch.context() as other:
            other.setattr(files.os, "getpid", lambda: 1)
            made.write({"x.txt": ["one\n"]})
        yield "one\n"

    assert made.write({"x.txt": lines()}).files == {"x.txt": hashlib.sha256(b"one\n").hexdigest()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "x.txt"]


def test_a_manifest_is_written_last_and_goes_first(tmp_path):
    made = Manifest(tmp_path / "m.json", "test").write({"x.txt": ["one\n"]})

    def breaks():
        yield "half"
        assert not made.path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.write({"x.txt": breaks()})
    assert (tmp_path / "x.txt").read_text() == "one\n"
    assert Manifest.read(made.path) is None


def test_differences_of_a_template_name_its_parts_and_not_its_text():
    made = {"prompt": {"joint": "a", "task": "t"}, "split": "paper"}
    wanted = {"prompt": {"joint": "b", "task": "t"}, "split": "paper"}
    assert setting_differences(made, wanted) == ["prompt differs in joint"]


def test_each_file_is_read_for_its_checksum_once_a_run(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = given | {"atomic_path": str(tmp_path / "a")}
    run_recbole_llm4sbr("SRGNN", "tiny", config_dict=config)
    read: Counter = Counter()
    original = hashlib.file_digest

    def counted(handle, name):
        read[handle.name if isinstance(handle.name, str) else str(handle.name)] += 1
        return original(handle, name)

    monkeypatch.setattr(files, "_checksums", {})
    monkeypatch.setattr(hashlib, "file_digest", counted)
    run_recbole_llm4sbr("SRGNN", "tiny", config_dict=config)
    assert {name.rpartition("/")[2] for name in read} >= {"tiny.inter", "tiny.train.inter", "tiny.itememb", "tiny.sessemb"}
    assert set(read.values()) == {1}, read


def test_a_file_that_changes_within_a_process_is_read_again(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    first = sha256_file(path)
    path.write_text("two")
    assert sha256_file(path) == hashlib.sha256(b"two").hexdigest() != first


@pytest.mark.parametrize("name", ["prepare.json", "itememb.json", "infer.json"])
@pytest.mark.parametrize("content", [b"{}", b"null", b"[1]", b'{"format": 2}', b"\xff\xfe", b"{"])
def test_a_manifest_of_another_shape_is_named_and_the_remedy_works(tiny, name, content):
    path = file_of(tiny, name)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is of another version of this package, or is damaged.*--rebuild=true"):
        infer(tiny, prepare(tiny))
    whole = tiny | {"rebuild": True}
    infer(whole, prepare(whole))
    assert check_run_files(tiny).intents is not None


@pytest.mark.parametrize("name", ["tiny.train.inter", "tiny.item", "tiny.itememb", "tiny.sessemb", "tiny.intentemb"])
@pytest.mark.parametrize("change", ["delete", "append"])
def test_a_changed_file_is_named_and_the_remedy_works(tiny, name, change):
    path = file_of(tiny, name)
    before = path.read_bytes()
    if change == "delete":
        path.unlink()
    else:
        path.write_bytes(before + b"x\n")
    with pytest.raises(UserError, match=rf"{name}' is missing or was changed.*--rebuild=true"):
        check_run_files(tiny)
    with pytest.raises(UserError, match=rf"{name}' is missing or was changed.*--rebuild=true"):
        infer(tiny, prepare(tiny))
    whole = tiny | {"rebuild": True}
    infer(whole, prepare(whole))
    assert path.read_bytes() == before
    check_run_files(tiny)


def test_a_view_that_is_added_changes_no_other_views_checksum(settings_for):
    settings = settings_for(views=["long"])
    prepared = prepare(settings)
    first = infer(settings, prepared).intents.views
    both = infer(settings_for(), prepared).intents.views
    assert set(both) == {"long", "short"}
    assert both["long"] == first["long"] == infer(settings, prepared).intents.views["long"]


def test_a_views_checksum_is_that_of_the_answers_by_session():
    def checksums(names, rows, sims=0.5, sets=None):
        found = Localized(np.array([[0, 1]]), np.full((1, 2), sims, np.float32), {"long": np.zeros(2, np.int32)})
        return SessionLines(["s1", "s2"], {"long": np.array(rows, np.int32)}, ["a", "b"], found, sets).checksums(names)

    first = checksums(["Alien", "Heat"], [1, 0])
    assert first == checksums(["Alien", "Heat"], [1, 0], 0.5001)  # the last digit depends on what else is compared
    assert first == checksums(["Alien", "Babe", "Heat"], [2, 0])  # another view has one answer more
    assert first != checksums(["Alien", "Heat"], [0, 1])
    assert first != checksums(["Alien", "Heat"], [1, -1])
    several = checksums(["Alien", "Heat"], [0, 1], sets=np.array([[0, 1], [1, -1]], np.int32))
    assert several != checksums(["Alien", "Heat"], [0, 1], sets=np.array([[1, 0], [1, -1]], np.int32))
    assert checksums([], [1, 0]) != checksums([], [1, -1])


def test_a_checkpoint_outlives_a_view_that_is_added_and_no_other_answers(settings_for):
    settings = settings_for(views=["long"])
    infer(settings, prepare(settings))
    result = train(settings)
    infer(settings_for(), prepare(settings))
    loaded = load_model(result.checkpoint)
    assert loaded.config["views"] == ["long"]
    manifest = file_of(settings, "infer.json")
    made = json.loads(manifest.read_text())
    made["views"]["long"] = "0" * 64
    manifest.write_text(json.dumps(made))
    with pytest.raises(UserError, match=r"was trained on another tiny\.sessemb, view long"):
        load_model(result.checkpoint)


def test_other_weights_in_an_encoders_folder_are_noticed(settings_for, tiny_encoder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    settings = settings_for(encoder=str(folder))
    prepared = prepare(settings)
    infer(settings, prepared)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(UserError, match=r"the model of encoder was 'encoder \(sha256"):
        infer(settings, prepared)
    shutil.rmtree(folder)
    assert infer(settings, prepared).counts.calls == 0  # files serve without the model that made them


def test_secrets_of_an_address_stand_in_no_manifest(settings_for, monkeypatch):
    from recbole_llm4sbr.base.facts import deciding

    settings = settings_for(llm_backend="openai") | {"llm_url": "http://me:secret@127.0.0.1:1/v1?key=secret"}
    assert "secret" not in json.dumps(deciding(settings, "intents"))
