"""Tables of searches: trials as a grid of two settings or as a list, and the test of the best."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.records import Search
from recbole_llm4sbr.base.wording import show, show_settings
from recbole_llm4sbr.report.table import Table, describe_intents


def search_tables(search: Search) -> list[Table]:
    """A search's trials, as a grid of two settings where it is one, and the test of the best one."""
    assert search.best is not None  # unfinished searches are not read
    metric, trials = search.metric, search.trials
    what = f"{search.model}: search by {search.asked['how']} over " + ", ".join(trials[0].setting)
    tables = []
    if found := by_two(search):
        row_key, column_key, rows, columns, scores = found
        best = np.unravel_index((np.nanargmax if search.bigger else np.nanargmin)(scores), scores.shape)
        cells = [
            [show(row), *("-" if np.isnan(score) else f"{score:.2f}" for score in line)] for row, line in zip(rows, scores)
        ]
        how = (
            f"{metric} on validation, in percent; the best in bold. One seed: neighbours differ by chance too. Intents: "
            + describe_intents(search.best.result).replace("*", "").replace("`", "")
        )
        head = [f"{row_key} \\ {column_key}", *map(show, columns)]
        tables.append(Table(what, how, head, cells, 1, {(int(best[0]), int(best[1]) + 1)}))
    ordered = sorted(trials, key=lambda trial: -(trial.score or 0) if search.bigger else trial.score or np.inf)
    rows = []
    for trial in ordered[:20]:
        score = "failed" if trial.score is None else f"{100 * trial.score:.2f}"
        rows.append([*(show(value, 4) for value in trial.setting.values()), score, str(trial.epochs_seen), trial.error or ""])
    how = f"By {metric} on validation, in percent; {len(trials)} trials" + (
        ", the best 20 of them." if len(trials) > 20 else "."
    )
    head = [*trials[0].setting, f"valid {metric}", "reports", "error"]
    tables.append(Table(f"Trials of {what}", how, head, rows, 0))
    result = search.best.result
    setting = show_settings(search.best.setting)
    names = [name for name in result.test_result]
    values = [f"{100 * result.test_result[name]:.2f}" for name in names]
    how = f"The setting with the best validation ({setting}), trained again and tested once, in percent. No other trial was tested."
    tables.append(Table("Test of the best setting", how, names, [values], 0))
    return tables


def by_two(search: Search) -> tuple[str, str, list[Any], list[Any], npt.NDArray[np.float64]] | None:
    """Validation of a search over a grid of two settings.

    Returns:
        The settings, their values and the best score in percent for each pair, nan where no trial ended; None for another search.
    """
    keys = list(search.trials[0].setting)
    if len(keys) != 2:
        return None
    rows, columns = (distinct([trial.setting[key] for trial in search.trials]) for key in keys)
    if len(rows) * len(columns) > 4 * len(search.trials):
        return None  # drawn at random: hardly any pair twice
    scores = np.full((len(rows), len(columns)), np.nan)
    for trial in search.trials:
        if trial.score is not None:
            place = rows.index(trial.setting[keys[0]]), columns.index(trial.setting[keys[1]])
            scores[place] = (np.nanmax if search.bigger else np.nanmin)([scores[place], 100 * trial.score])
    return keys[0], keys[1], rows, columns, scores


def distinct(values: Sequence[Any]) -> list[Any]:
    """Different values, numbers in rising order before the rest."""
    different = {show(value): value for value in values}
    return sorted(different.values(), key=lambda value: (0, value, "") if _is_number(value) else (1, 0, show(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
