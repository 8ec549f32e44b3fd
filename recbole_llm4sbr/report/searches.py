"""Tables of searches: trials as a grid of two settings or as a list, and the test of the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.grids import Search
from recbole_llm4sbr.base.metrics import shown_by, units
from recbole_llm4sbr.base.wording import show, show_settings
from recbole_llm4sbr.report.intents import describe_intents
from recbole_llm4sbr.report.table import Table
from recbole_llm4sbr.report.unfinished import COLUMN, UNFINISHED


def search_titles(searches: Sequence[Search]) -> list[str]:
    """A headline for each of the searches of a block, each one of its own."""
    titles: list[str] = []
    for search in searches:
        assert search.best is not None  # unfinished searches are not read
        what = "with intents" if search.best.result.settings["llm4sbr"] else "plain"
        settings = len(search.trials[0].setting)
        title = f"Search of {search.model}, {what}: {len(search.trials)} trials over {settings} setting" + "s" * (settings > 1)
        titles.append(title + f" ({titles.count(title) + 1})" * (title in titles))
    return titles


def search_tables(search: Search) -> list[Table]:
    """A search's trials, as a grid of two settings where it is one, and the test of the best one."""
    assert search.best is not None  # unfinished searches are not read
    metric, trials = search.metric, search.trials
    what = f"{search.model}: search by {search.asked['how']} over " + ", ".join(trials[0].setting)
    tables = []
    if found := by_two(search):
        cells = [[show(row), *found.texts(number)] for number, row in enumerate(found.rows)]
        which = "best finished one" if found.unfinished.any() else "best"
        how = (
            f"{metric} on validation, in percent; the {which} in bold. One seed: neighbours differ by chance too. Intents: "
            + describe_intents(search.best.result).replace("*", "").replace("`", "")
            + note_of_trials(search)
        )
        head = [f"{found.row_key} \\ {found.column_key}", *map(show, found.columns)]
        finished = np.where(found.unfinished, np.nan, found.scores)
        best = set()
        if np.isfinite(finished).any():
            row, column = np.unravel_index((np.nanargmax if search.bigger else np.nanargmin)(finished), finished.shape)
            best.add((int(row), int(column) + 1))
        tables.append(Table(what, how, head, cells, 1, best))
    ordered = sorted(trials, key=lambda trial: -(trial.score or 0) if search.bigger else trial.score or np.inf)
    rows = []
    training = [COLUMN] if any(trial.unfinished for trial in trials) else []
    for trial in ordered[:20]:
        score = "failed" if trial.score is None else f"{100 * trial.score:.2f}"
        state = [UNFINISHED if trial.unfinished else ""] if training else []
        rows.append(
            [*(show(value, 4) for value in trial.setting.values()), score, str(trial.epochs_seen), *state, trial.error or ""]
        )
    how = f"By {metric} on validation, in percent; {len(trials)} trials" + (
        ", the best 20 of them." if len(trials) > 20 else "."
    )
    how += note_of_trials(search)
    head = [*trials[0].setting, f"valid {metric}", "reports", *training, "error"]
    tables.append(Table(f"Trials of {what}", how, head, rows, 0))
    result = search.best.result
    setting = show_settings(search.best.setting)
    names = [name for name in result.test_result]
    values = [f"{shown_by(name) * result.test_result[name]:.2f}" for name in names]
    how = f"The setting with the best validation ({setting}), trained again and tested once, {units(names)}. No other trial was tested."
    if result.unfinished:
        how += f" Here {result.advice()}; until then these figures support no claim."
        names, values = [COLUMN, *names], [UNFINISHED, *values]
    tables.append(Table("Test of the best setting", how, names, [values], 0))
    return tables


def note_of_trials(search: Search) -> str:
    """How many trials are unfinished, and the setting to raise; "" where none is."""
    count = sum(trial.unfinished for trial in search.trials)
    if not count:
        return ""
    return f" Unfinished trials, whose best epoch is the last that they were allowed: {count}, each marked; raise --epochs."


@dataclass(frozen=True)
class TwoSettings:
    """Validation of a search over a grid of two settings.

    Attributes:
        row_key, column_key: the settings.
        rows, columns: their values.
        scores: the best in percent for each pair, [rows, columns]; nan where no trial ended.
        unfinished: whether the trial with that score is unfinished, [rows, columns].
    """

    row_key: str
    column_key: str
    rows: list[Any]
    columns: list[Any]
    scores: npt.NDArray[np.float64]
    unfinished: npt.NDArray[np.bool_]

    def texts(self, row: int, absent: str = "-") -> list[str]:
        """The scores of a row as they are printed."""
        marks = (f" ({UNFINISHED})" if late else "" for late in self.unfinished[row])
        return [absent if np.isnan(score) else f"{score:.2f}{mark}" for score, mark in zip(self.scores[row], marks)]


def by_two(search: Search) -> TwoSettings | None:
    """Validation of a search over a grid of two settings; None for another search."""
    keys = list(search.trials[0].setting)
    if len(keys) != 2:
        return None
    rows, columns = (distinct([trial.setting[key] for trial in search.trials]) for key in keys)
    if len(rows) * len(columns) > 4 * len(search.trials):
        return None  # drawn at random: hardly any pair twice
    scores = np.full((len(rows), len(columns)), np.nan)
    unfinished = np.zeros(scores.shape, bool)
    better = np.greater if search.bigger else np.less
    for trial in search.trials:
        if trial.score is not None:
            place = rows.index(trial.setting[keys[0]]), columns.index(trial.setting[keys[1]])
            if np.isnan(scores[place]) or better(100 * trial.score, scores[place]):
                scores[place], unfinished[place] = 100 * trial.score, trial.unfinished
    return TwoSettings(keys[0], keys[1], rows, columns, scores, unfinished)


def distinct(values: Sequence[Any]) -> list[Any]:
    """Different values, numbers in rising order before the rest."""
    different = {show(value): value for value in values}
    return sorted(different.values(), key=lambda value: (0, value, "") if _is_number(value) else (1, 0, show(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
