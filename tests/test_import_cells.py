"""Cells and rows of imported tables that programs changed on the way: rounded ids, bytes, escapes, missing titles, duplicates."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from test_bad_input import refused
from test_import import CLICKS, TITLES, changed, plain, shop, write_csv

from recbole_llm4sbr import import_clicks
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.cli.main import main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def titles():
    return dict(row[:2] for row in plain("item")[1:])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("cell", ["4.01235E+12", "4,01235E+12", "4E+12", "4.01235e+12"])
def test_an_id_that_a_spreadsheet_rounded_is_refused_with_the_next_step(column, cell, capsys):
    says = f"{'item_id' if column else 'user_id'}='{cell}' is a number that a spreadsheet rounded; format the column as text"
    refused(shop(clicks=changed(CLICKS, 2, column, cell)), capsys, f"line 4: {says}")


def test_an_id_of_the_items_or_of_a_raw_file_that_a_spreadsheet_rounded_is_refused(capsys):
    refused(shop(titles=TITLES | {"4.01235E+12": "Rug"}), capsys, "'items.csv', line 5: item_id='4.01235E+12' is a number that")
    folder = Path("dataset/raw")
    folder.mkdir(parents=True)
    (folder / "raw.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t4.01235E+12\t1\n")
    refused(
        ["prepare", "--dataset=raw", "--llm4sbr=false"], capsys, "item_id='4.01235E+12' is a number that a spreadsheet rounded"
    )


def test_bytes_of_parquet_are_their_text():
    clicks = pd.DataFrame([(user.encode(), item.encode(), time) for user, item, time in CLICKS], columns=["user", "item", "ts"])
    items = pd.DataFrame(
        {"item": [b"a", b"b"], "title": ["Café".encode(), "漢字".encode()], "picture": [b"\xff\xd8\xff", b"\x89PNG"]}
    )
    clicks.to_parquet("clicks.parquet")
    items.to_parquet("items.parquet")
    found = import_clicks("clicks.parquet", "mine", "items.parquet")
    assert plain("inter")[1:] == [[user, item, str(time)] for user, item, time in CLICKS]
    assert plain("item") == [["item_id:token", "title:token_seq"], ["a", "Café"], ["b", "漢字"]]
    assert found.catalogue.left_out == ("picture",)
    with pytest.raises(UserError, match=r"bytes b'\\xff' are no text in UTF-8"):
        import_clicks(clicks.assign(item=b"\xff"), "other")


ESCAPED = {"a": 'a "b" c', "b": 'one, "two", three', "c": '"all"', "d": "plain, with a comma", "e": "back\\slash", "f": '12"'}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotes_behind_backslashes_are_read_as_their_writer_meant_them(quoting, capsys):
    text = io.StringIO()
    csv.writer(text, doublequote=False, escapechar="\\", quoting=quoting).writerows([("item_id", "title"), *ESCAPED.items()])
    assert r"\"" in text.getvalue()
    words = shop(clicks=[("u", item, 1700000000 + n) for n, item in enumerate(ESCAPED)])
    Path("items.csv").write_text(text.getvalue())
    assert main(words) == 0
    assert {item: title.strip() for item, title in titles().items()} == ESCAPED
    Path("items.csv").write_text(text.getvalue() + 'g,"1\\" x\n2\\""\n4E+9,h\n')
    refused([*words, "--overwrite=true"], capsys, "'items.csv', line 10: item_id='4E+9'")


@pytest.mark.parametrize(
    "names", [{"a": "C:\\", "b": 'say "hi"', "c": "\\"}, {"a": '{"said": "\\"yes\\", \\"no\\""}', "b": "x", "c": "\\"}]
)
def test_a_backslash_in_a_file_that_doubles_its_quotes_stays_a_backslash(names):
    words = shop(titles=names)
    assert main(words) == 0
    assert titles() == names


def test_a_cell_that_ends_with_a_quote_behind_a_backslash_ends_there():
    words = shop()
    Path("items.csv").write_text('item_id,title\na,"5\\""\nb,"6\\""\nc,"7, 8"\n')
    assert main(words) == 0
    assert titles() == {"a": '5"', "b": '6"', "c": "7, 8"}


def test_titles_that_programs_write_for_missing_values_are_missing_and_counted_by_name(capsys):
    none = ["nan", "NaN", "None", "NULL", "<NA>", "NA", r"\N", "null "]
    names = {"a": "Lamp", "n": "Nan's bread", "z": "none", **{f"m{n}": title for n, title in enumerate([*none, "None"])}}
    words = shop(clicks=[("u", item, 1700000000 + n) for n, item in enumerate(names)])
    write_csv("items.csv", ("item_id", "title", "brand"), [(item, title, "nan") for item, title in names.items()])
    assert main(words) == 0
    assert titles() == {item: title if item in "anz" else "" for item, title in names.items()}
    out = capsys.readouterr().out
    assert "12 items (3 with a title, 9 without)" in out
    said = re.search("taken as missing titles: (.*)\n", out)[1].split(", ")
    assert sorted(said) == sorted(f"{title.strip()} (of {2 if title == 'None' else 1} items)" for title in none)
    assert "left out, being long, empty or no text: brand" in out


def test_a_title_beside_the_clicks_counts_though_another_row_has_none(capsys):
    rows = [("u", "a", 1700000000, "nan"), ("u", "a", 1700000001, "Lamp"), ("u", "b", 1700000002, "nan")]
    found = import_clicks(pd.DataFrame(rows, columns=["user", "item", "ts", "title"]), "mine")
    assert titles() == {"a": "Lamp"}
    assert (found.catalogue.several, found.catalogue.missing) == (0, {"nan": 2})


def test_entities_of_html_are_their_signs_and_ampersands_stay():
    names = {"a": "Tom &amp; Jerry", "b": "&quot;Heat&quot; &#38; &#x26; caf&eacute;", "c": "AT&T; R&B &c &copy Q&nosuch;"}
    assert main(shop(titles=names)) == 0
    assert titles() == {"a": "Tom & Jerry", "b": ' "Heat" & & café', "c": names["c"]}


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
def test_the_command_that_the_error_names_keeps_the_quotes_and_the_euro_of_windows(capsys):
    words = shop()
    text = "item_id,title\na,“Lamp” – 5 €\nb,Ž\nc,é\n"
    Path("items.csv").write_bytes(text.encode("cp1252"))
    assert main(words) == 2
    command = re.search("`(iconv .*?)`", capsys.readouterr().err)[1]
    Path("items.csv").write_bytes(subprocess.run([*command.split(), "items.csv"], check=True, stdout=subprocess.PIPE).stdout)
    assert main(words) == 0
    assert titles() == {"a": "“Lamp” – 5 €", "b": "Ž", "c": "é"}


# Duplicates.


def test_rows_of_the_very_same_click_are_counted_and_left_out_where_that_is_asked_for(capsys):
    near = [("ann", "a", 1700000001), ("bob", "a", 1700000000), ("ann", "b", 1700000000)]  # another time, user, item
    clicks = [*CLICKS[:2], CLICKS[0], *CLICKS[2:], *near, CLICKS[0]]
    assert main(shop(clicks=clicks)) == 0
    assert [row[:2] for row in plain("inter")[1:]] == [list(click[:2]) for click in clicks]
    says = (
        "kept: 2 of 9 rows, the very click of an earlier row (the same user, item and time); --duplicates=drop leaves them out"
    )
    assert says in capsys.readouterr().out
    bad = ("ann", "NA", 1700000000)
    assert main([*shop(clicks=[bad, *clicks]), "--duplicates=drop", "--bad_rows=drop", "--overwrite=true"]) == 0
    assert [row[:2] for row in plain("inter")[1:]] == [list(click[:2]) for click in [*CLICKS, *near]]
    out = capsys.readouterr().out
    assert "mine: 7 clicks" in out
    assert "left out: 1 of 10 rows, without a readable item 1\n" in out
    assert "left out: 2 of 10 rows, the very click of an earlier row" in out
    refused([*shop(), "--duplicates=maybe"], capsys, "choose one of keep, drop")


def test_without_times_no_row_is_a_duplicate(capsys):
    clicks = [("ann", "a"), ("ann", "a"), ("ann", "b")]
    write_csv("clicks.csv", ("user_id", "item_id"), clicks)
    assert main(["import", "clicks.csv", "--dataset=mine", "--time=null", "--duplicates=drop"]) == 0
    assert [row for row in plain("inter")[1:]] == [list(click) for click in clicks]
