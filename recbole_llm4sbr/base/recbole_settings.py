"""RecBole's settings of data: each works here as RecBole means it, or is refused by name.

RecBole is not imported.
"""

from collections.abc import Mapping
from typing import Any

from recbole_llm4sbr.base.errors import UserError

# What RecBole is told about the session files, whatever else is given.
SESSION_FILES: dict[str, Any] = {
    "USER_ID_FIELD": "session_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "benchmark_filename": ["train", "valid", "test"],
    "alias_of_item_id": ["item_id_list"],
    "encoding": "utf-8",
}
SESSION_COLUMNS = ["session_id", "item_id_list", "item_id"]

_RANKED = "every session ranks the whole catalogue here"
_CUT = "`prepare` cuts sessions and parts"
_FORM = "`prepare` writes tabs between cells and blanks inside sequences; a log in another form becomes a dataset with `import`"
_CLICKS = "the session files hold clicks, and neither labels nor ratings: leave clicks that do not count out of the raw files"
_LOADED = "load_col names the columns of .item that are loaded, as {item: [item_id, year]}"
_FEATURES = f"no atomic files beside .item are loaded, since models read those of `infer` themselves; {_LOADED}"
_GRAPH = "no knowledge graph is read here"
_SAVED = "the prepared files are what is kept between runs"
_REFUSED = {  # why no other value than RecBole's default, or the session files' own, is possible
    "field_separator": _FORM,
    "seq_separator": _FORM,
    "USER_ID_FIELD": "the session files call it session_id; name the raw files' column with --user_column or --session_column",
    "ITEM_ID_FIELD": "the session files call it item_id; name the raw files' column with --item_column",
    "TIME_FIELD": "the session files are in order and hold no times; name the raw files' column with --time_column",
    "RATING_FIELD": _CLICKS,
    "LABEL_FIELD": _CLICKS,
    "threshold": _CLICKS,
    "LIST_SUFFIX": "the session files call a session's clicks item_id_list; name the raw files' column with --list_column",
    "POSITION_FIELD": "no model reads it",
    "unload_col": _LOADED,
    "unused_col": _LOADED,
    "additional_feat_suffix": _FEATURES,
    "preload_weight": _FEATURES,
    "alias_of_user_id": _FEATURES,
    "alias_of_item_id": _FEATURES,
    "rm_dup_inter": f"{_CUT}: leave such clicks out of the raw files",
    "val_interval": f"{_CUT}: leave such clicks out of the raw files",
    "filter_inter_by_user_or_item": f"{_CUT}: --min_session_length, --min_item_count",
    "user_inter_num_interval": f"{_CUT}: --min_session_length",
    "item_inter_num_interval": f"{_CUT}: --min_item_count",
    "benchmark_filename": f"{_CUT}: --split",
    "eval_neg_sample_args": _RANKED,
    "valid_neg_sample_args": _RANKED,
    "test_neg_sample_args": _RANKED,
    "HEAD_ENTITY_ID_FIELD": _GRAPH,
    "TAIL_ENTITY_ID_FIELD": _GRAPH,
    "RELATION_ID_FIELD": _GRAPH,
    "ENTITY_ID_FIELD": _GRAPH,
    "alias_of_entity_id": _GRAPH,
    "alias_of_relation_id": _GRAPH,
    "kg_reverse_r": _GRAPH,
    "entity_kg_num_interval": _GRAPH,
    "relation_kg_num_interval": _GRAPH,
    "save_dataset": _SAVED,
    "dataset_save_path": _SAVED,
    "save_dataloaders": _SAVED,
    "dataloaders_save_path": _SAVED,
    "transform": "RecBole's models that read changed sequences set it themselves",
}
_NEVER_NULL = ("field_separator", "seq_separator", "transform")  # elsewhere null means no filter, field or file, as here
# Of the transforms that a class of the user's own may ask for, those that RecBole has.
_TRANSFORMS = ("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq")
# Settings of the features in .item: their form, and the ending of the types of the columns that they may name.
FEATURES_BY: dict[str, tuple[type[list[Any]] | type[dict[str, Any]], str]] = {
    "normalize_field": (list, "float"),
    "numerical_features": (list, "float"),
    "discretization": (dict, "float"),
    "seq_len": (dict, "seq"),
}


def check_recbole_settings(given: Mapping[str, Any], defaults: Mapping[str, Any], own_model: bool) -> None:
    """Refuse settings of RecBole that the session files contradict, or that would be passed over.

    Args:
        given: settings that were given.
        defaults: RecBole's own of the model; to give one of them is to give nothing.
        own_model: whether the model is a class of the user's own.

    Raises:
        UserError: names the setting, the value, why it is refused, and what decides it here.
    """
    for key, value in given.items():
        if key not in _REFUSED or (value is None and key not in _NEVER_NULL):
            continue
        asked_by_own = key == "transform" and own_model and value in _TRANSFORMS
        if value not in (default := defaults.get(key), SESSION_FILES.get(key, default)) and not asked_by_own:
            raise UserError(f"{key}={value!r} is not possible here: {_REFUSED[key]}; leave it out")
    _check_eval_args(given.get("eval_args"))
    if "load_col" in given:
        _check_load_col(given["load_col"])
    for key in given.keys() & {"ITEM_LIST_LENGTH_FIELD", "NEG_PREFIX"}:
        if not isinstance(given[key], str) or given[key] in ("", *SESSION_COLUMNS):
            raise UserError(
                f"{key}={given[key]!r} must be a text, and no column of the sessions ({', '.join(SESSION_COLUMNS)})"
            )
    _check_features(given)


def _check_eval_args(asked: Any) -> None:
    if asked is None:
        return
    asked = asked if isinstance(asked, dict) else {"mode": asked}
    if "split" in asked or asked.get("order", "TO") != "TO":
        raise UserError(f"eval_args={asked!r} is not possible here: {_CUT}: --split, --split_ratio; leave it out")
    if asked.get("mode", "full") != "full":
        raise UserError(f"eval_args={asked!r} is not possible here: {_RANKED} (mode: full); leave it out")


def _check_load_col(value: Any) -> None:
    """Refuse columns of the sessions that they do not have, and items without their id; the declaration refuses what is no mapping."""
    if not isinstance(value, dict):
        return
    inter, item = value.get("inter", "*"), value.get("item", "*")
    if inter != "*" and not (isinstance(inter, list) and set(map(str, inter)) <= set(SESSION_COLUMNS)):
        raise UserError(
            f"load_col={value!r}: the sessions have the columns {', '.join(SESSION_COLUMNS)} and no others, which are always loaded; leave "
            f"`inter` out, and name the raw files' columns with --user_column, --item_column and --time_column"
        )
    if item != "*" and not (isinstance(item, list) and "item_id" in item and all(isinstance(each, str) for each in item)):
        raise UserError(f"load_col={value!r}: columns of .item are a list with item_id in it, as {{item: [item_id, year]}}")


def _check_features(given: Mapping[str, Any]) -> None:
    """Refuse settings of item features of another form than RecBole's."""
    for key, (form, _) in FEATURES_BY.items():
        value = given.get(key)
        if value is not None and not (isinstance(value, form) and all(isinstance(each, str) for each in value)):
            example = "[price]" if form is list else "{price: ...}"
            raise UserError(f"{key}={value!r} must name columns of .item, as {example}")
    for field, longest in (given.get("seq_len") or {}).items():
        if type(longest) is not int or longest < 1:
            raise UserError(f"seq_len={given['seq_len']!r}: {field!r} needs a number of at least 1")
    for field, how in (given.get("discretization") or {}).items():
        method, bucket = (how.get("method"), how.get("bucket")) if isinstance(how, dict) else (None, None)
        if method != "LD" and not (method == "ED" and type(bucket) is int and bucket > 0):
            raise UserError(f"discretization: {field}={how!r} must be {{method: LD}} or {{method: ED, bucket: 10}}")
        if field not in (given.get("numerical_features") or []):
            raise UserError(
                f"discretization: {field!r} must stand in numerical_features too; add --numerical_features=[{field}]"
            )
    if given.get("normalize_all") not in (None, True, False):
        raise UserError(f"normalize_all={given['normalize_all']!r} must be true or false")
    if given.get("normalize_field") and given.get("normalize_all"):
        raise UserError("normalize_field and normalize_all contradict each other; leave one out")
