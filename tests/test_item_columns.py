"""What RecBole's reader gives back of a prepared `.item` file is what the raw file holds, item by item."""

import math
import re
import shutil
from pathlib import Path

import pytest
from conftest import file_of
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recbole.data import create_dataset
from recbole.model.sequential_recommender import GRU4Rec
from test_interop import stock

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.names import MISSING
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.training.config import SessionConfig
from recbole_llm4sbr.training.dataset import SessionDataset
from recbole_llm4sbr.training.loading import load_model
from recbole_llm4sbr.training.run import train

HEAD = ["item_id:token", "title:token_seq", "label:token", "price:float", "sizes:float_seq"]
COLUMNS = [cell.partition(":")[0] for cell in HEAD]
SIGNS = st.text(" \"'abé,;-\\#\xa0\u2009\u2028\x85\x0b\ufeff", max_size=8)
TEXTS = SIGNS | st.sampled_from([*MISSING, '"', '""', '"x', 'x"', '"x" y', '"x"y"', " x", "x ", '" "', "-"])
NUMBERS = (
    st.integers(-(10**6), 10**6).map(str)
    | st.decimals(-(10**6), 10**6, places=4).map(str)
    | st.sampled_from(["+.5", "5.", "1E3"])
)
ROWS = st.tuples(
    TEXTS, TEXTS, NUMBERS | NUMBERS.map(" {} ".format) | st.sampled_from([*MISSING]), st.lists(NUMBERS, max_size=3)
)


def write_items(raw, folder, rows):
    """A raw dataset `tiny` in `folder` whose items have these cells behind their ids; the folder that holds it."""
    shutil.copytree(raw / "tiny", folder / "tiny", dirs_exist_ok=True)
    lines = ["\t".join(HEAD), *("\t".join([f"m{number}", *cells]) for number, cells in enumerate(rows))]
    (folder / "tiny" / "tiny.item").write_text("\n".join(lines) + "\n", newline="")
    return str(folder)


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(ROWS, min_size=30, max_size=30))
def test_recbole_gives_each_item_the_features_of_its_raw_row(cells, raw, settings_for, tmp_path):
    rows = [(title, label, price, " ".join(sizes)) for title, label, price, sizes in cells]
    load = {"item": COLUMNS}
    settings = settings_for(
        data_path=write_items(raw, tmp_path / "raw", rows), llm4sbr=False, load_col=load, rebuild=True, item_text="{title}"
    )
    prepare(settings)
    config = stock(settings, GRU4Rec, load_col={"inter": ["session_id", "item_id_list", "item_id"], **load})
    for dataset in (create_dataset(config), SessionDataset(SessionConfig(settings))):
        features = dataset.item_feat
        assert len(features) == dataset.item_num > 10
        for number, token in enumerate(dataset.field2id_token["item_id"][1:], 1):
            # signs that end a line for some reader become blanks
            title, label, price, sizes = (re.sub(r"[\x0b\x85\u2028]", " ", cell) for cell in rows[int(token[1:])])
            row = features.loc[number]
            assert dataset.field2id_token["label"][int(row["label"])] == (label or "[PAD]")
            assert dataset.field2id_token["title"][row["title"]].tolist() == [word for word in title.split(" ") if word]
            assert price.strip() in MISSING or row["price"] == pytest.approx(float(price))
            assert row["sizes"].tolist() == pytest.approx([float(size) for size in sizes.split(" ") if size])
    shown = read_items(file_of(settings, "tiny.item")).set_index("item_id")
    assert all(label == re.sub(r"[\x0b\x85\u2028]", " ", rows[int(item[1:])][1]) for item, label in shown["label"].items())


PLAIN = [("a title", "x", "1.5", "1 2")] * 30


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        (2, '"', "price='\"' is no number"),
        (2, "-", "price='-' is no number.*correct or empty the cell, or declare price:token"),
        (2, "1,5", "price='1,5'"),
        (2, "inf", "price='inf'"),
        (2, "1e99", "price='1e99'"),
        (2, "1_000", "price='1_000'"),
        (2, "1 2", "price='1 2'"),
        (3, "1 x 2", "sizes='x' is no number.*declare sizes:token_seq"),
        (3, "1 nan", "sizes='nan'"),
    ],
)
def test_a_cell_that_is_to_be_a_number_and_is_none_is_named_with_its_line(column, value, says, raw, settings_for, tmp_path):
    rows = [*PLAIN]
    rows[4] = tuple(value if place == column else cell for place, cell in enumerate(rows[4]))
    folder = write_items(raw, tmp_path / "raw", rows)
    path = Path(folder, "tiny", "tiny.item")
    path.write_text(path.read_text().replace("m2\t", "\nm2\t"))  # an empty line holds no row, and counts
    with pytest.raises(UserError, match=rf"tiny\.item', line 7: {says}"):
        prepare(settings_for(data_path=folder, llm4sbr=False))
    assert not Path(settings_for()["atomic_path"], "tiny").exists()


def test_empty_lines_count_where_a_bad_click_is_named(raw, settings_for, tmp_path):
    folder = write_items(raw, tmp_path / "raw", PLAIN)
    path = Path(folder, "tiny", "tiny.inter")
    head, first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, "", first, "", lines[0].rpartition("\t")[0] + "\tnoon", *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="line 5: timestamp='noon'"):
        prepare(settings_for(data_path=folder, llm4sbr=False))


@pytest.mark.parametrize(
    ("head", "says"),
    [("label:text", "the column 'label' has the type 'text'"), ("a:b:token", "type 'b:token'"), ('"a:token', "named '\"a'"),
     (":token", "named ''")],
)  # fmt: skip
def test_a_column_that_recbole_cannot_read_is_refused(head, says, raw, settings_for, tmp_path):
    folder = write_items(raw, tmp_path / "raw", PLAIN)
    path = Path(folder, "tiny", "tiny.item")
    path.write_text(path.read_text().replace("label:token", head))
    with pytest.raises(UserError, match=says):
        prepare(settings_for(data_path=folder, llm4sbr=False))


def test_a_session_of_many_clicks_is_read_whole(settings_for, tmp_path):
    folder = tmp_path / "raw" / "tiny"
    folder.mkdir(parents=True)
    clicks = [f"u{user}\tm{click % 40}-{'x' * 90}\t{user * 10**6 + click}" for user in range(10) for click in range(1500)]
    (folder / "tiny.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *clicks]) + "\n")
    settings = settings_for(
        data_path=str(folder.parent), llm4sbr=False, session_rule="user", repeatable=True, train_targets="last"
    )
    prepare(settings)
    assert max(map(len, file_of(settings, "tiny.train-last.inter").read_text().splitlines())) > 2**17
    dataset = SessionDataset(SessionConfig(settings))
    assert {len(clicks) for clicks in dataset.inter_feat["item_id_list"]} == {12}  # MAX_ITEM_LIST_LENGTH
    assert dataset.item_num == 41


@pytest.mark.parametrize("loss", ["CE", "BPR"])
def test_a_model_with_item_features_trains_and_its_checkpoint_loads(loss, raw, settings_for, tmp_path):
    rows = [('"quoted', f"label {number % 3}", f"{number}.5", "1 2") for number in range(30)]
    small = {"n_heads": 2, "n_layers": 1, "inner_size": 16, "selected_features": ["label", "price"], "pooling_mode": "mean"}
    loaded = {"load_col": {"item": ["item_id", "label", "price"]}, "numerical_features": ["price"], **small}
    data_path = write_items(raw, tmp_path / "raw", rows)
    settings = settings_for(model="SASRecF", data_path=data_path, llm4sbr=False, loss_type=loss, repeatable=True, **loaded)
    prepare(settings)
    result = train(settings)
    dataset = load_model(result.checkpoint).dataset
    labels = dataset.field2id_token["label"][dataset.item_feat["label"].numpy()]
    numbers = [int(token[1:]) for token in dataset.field2id_token["item_id"][1:]]
    assert labels[1:].tolist() == [f"label {number % 3}" for number in numbers]
    assert math.isfinite(result.train_losses[0])
