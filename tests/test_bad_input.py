"""Bad input ends in exit code 2 and one line that names it, before anything is written. The cases are made from the schema."""

import datetime
from pathlib import Path

import pytest
import yaml

from recbole_llm4sbr.base.schema import model_schema, models_with_settings, schema
from recbole_llm4sbr.cli.main import main

NAN, INF = float("nan"), float("inf")
ESCAPE = "a\x1b[31mred"


def wrong_values(setting):
    """Values that a setting cannot have, by what the schema says of it."""
    if setting.choices:
        return ["no such choice", 7.5, ["x"], {"a": 1}, *([] if setting.nullable else [None])]
    kinds = set(setting.types)
    found = []
    if kinds == {bool}:
        found += ["maybe", 2, [True], None]
    if kinds & {int, float}:
        found += ["many", NAN, INF, {"a": 1}, True]
        found += [1.5] if float not in kinds else []
        found += [setting.at_least - 1] if setting.at_least is not None and str not in kinds else []
        found += [setting.at_most + 1] if setting.at_most is not None else []
    if str in kinds:
        found += [{"a": 1}, ESCAPE, datetime.date(2020, 1, 2), 7.5]
        found += [] if setting.empty else [""]
        found += ["no such form!"] if setting.form else []
    if kinds == {str}:
        found += [7, ["a"]]
    if list in kinds:
        found += [[None], [NAN], [[1]]]
    if kinds == {list}:
        found += [7, "x", {"a": 1}, []]
        found += [["no such member"]] if setting.each_of or str not in setting.each else []
        found += [[1] * (setting.count + 1)] if setting.count else []
    if kinds == {dict}:
        found += [7, "x", ["x"], {1: 2}, {"a": NAN}]
        found += [{"no such key": 1}] if setting.keys else []
    return found


EVERY = {("", key): setting for key, setting in schema().items() if key not in ("config_files", "model", "dataset")}
EVERY |= {(name, key): setting for name in models_with_settings() for key, setting in model_schema(name).items()}


def test_every_setting_has_wrong_values():
    assert {key: len(wrong_values(setting)) for key, setting in EVERY.items() if len(wrong_values(setting)) < 3} == {}
    assert sum(len(wrong_values(setting)) for setting in EVERY.values()) >= 600


def refused(arguments, capsys, says):
    """Exit code 2, one line that names the thing, nothing written."""
    before = sorted(Path().rglob("*"))
    code = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert "\x1b" not in captured.err + captured.out
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("model", "key"), EVERY, ids=lambda each: each)
def test_every_wrong_value_of_a_setting_is_one_line_before_anything_is_written(
    model, key, given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for value in wrong_values(EVERY[model, key]):
        settings = given | {"atomic_path": "atomic", "dataset": "tiny", "model": model or "SRGNN"} | {key: value}
        Path("bad.yaml").write_text(yaml.safe_dump(settings))
        refused(["--config_files=bad.yaml"], capsys, key)


LINES = [
    ("--model=:x", "':x'"),
    ("--model=json:", "'json:'"),
    ("--model=json:dumps", "json:dumps"),
    ("--model=no.such.module:Model", "no.such.module"),
    ("--model=../../etc/passwd", "passwd"),
    ("--model=", "model"),
    ("--dataset=../tiny", "dataset='../tiny'"),
    ("--dataset=.hidden", "dataset='.hidden'"),
    ("--dataset=", "no dataset was named"),
    ("--epochs=1e400", "epochs"),
    ("--learning_rate=.nan", "learning_rate"),
    ("--use_gpu=maybe", "use_gpu='maybe'"),
    ("--loss_type=foo", "loss_type='foo'"),
    ("--learner=foo", "learner='foo'"),
    ("--eval_step=0", "eval_step=0"),
    ("--eval_step=9", "eval_step=9"),
    ("--worker=many", "worker='many'"),
    ("--clip_grad_norm={norm_type: 2}", "max_norm"),
    ("--clip_grad_norm=5", "clip_grad_norm=5"),
    ("--load_col=[item]", "load_col"),
    ("--load_col={item: [item_id, yaer]}", "no column 'yaer'"),
    ("--seq_separator=,", "seq_separator=','"),
    ("--train_neg_sample_args={distribution: foo}", "RecBole refuses these settings"),
    ("--valid_metric=Foo@20", "valid_metric='Foo@20' is not computed"),
    ("--valid_metric=MRR@7", "valid_metric='MRR@7' is not computed"),
    ("--valid_metric=MRR", "valid_metric='MRR' is not computed"),
    ("--metrics=[AUC]", "'AUC' is unknown"),
    ("--topk=[0]", "topk=[0]"),
    ("--topk=5", "topk=5"),
    ("--seed=-1", "seed=-1"),
    ("--split_ratio=[0.5,0.5]", "split_ratio"),
    ("--split_ratio=[1,0,0]", "split_ratio"),
    ("--views=[[long]]", "views"),
    ("--views=[long,long]", "views"),
    ("--views=[no-such-view]", "no-such-view"),
    ("--item_name={title:d}", "item_name='{title:d}'"),
    ("--item_name={title.__class__}", "braces hold a column's name"),
    ("--item_name={0[x]}", "braces hold a column's name"),
    ("--item_name={}", "braces hold a column's name"),
    ("--item_text={title!r}", "braces hold a column's name"),
    ("--faiss_index=foo", "faiss_index='foo'"),
    ("--llm_url=ftp://x", "llm_url='ftp://x'"),
    ("--llm_device=tpu", "llm_device='tpu'"),
    ("--encoder=./nowhere", "nowhere"),
    ("--prompt=nothing", "prompt='nothing' is unknown"),
    ("--prompt=missing.yaml", "missing.yaml"),
    ("--config_files=missing.yaml", "missing.yaml"),
    ("--config_files=,", "config_files"),
    ("--session_column=[]", "session_column"),
    ("--split=given", "split=given"),
    ("--time_column=null", "needs times"),
    ("--MAX_ITEM_LIST_LENGTH=0", "MAX_ITEM_LIST_LENGTH=0"),
    ("--shuffle=perhaps", "shuffle='perhaps'"),
    ("--enable_amp=7", "enable_amp=7"),
    ("--no_such_setting=1", "no_such_setting"),
    ("--=1", "''"),
    ("epochs=1", "epochs=1"),
    ("--nproc=0", "nproc=0"),
    ("--checkpoint_dir=bad.yaml", "bad.yaml"),
    ("--atomic_path=bad.yaml", "bad.yaml"),
    ("--result_file=.", "result_file"),
]


@pytest.mark.parametrize(("word", "says"), LINES, ids=[word for word, _ in LINES])
def test_a_wrong_word_of_the_command_line_is_one_line_before_anything_is_written(
    word, says, given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(yaml.safe_dump(given | {"atomic_path": "atomic"}))
    files = [] if word.startswith("--config_files") else ["--config_files=bad.yaml"]
    dataset = [] if word.startswith("--dataset") else ["--dataset=tiny"]
    refused([*dataset, *files, word], capsys, says)
