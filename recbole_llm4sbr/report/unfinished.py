"""How the report marks unfinished runs: those whose best epoch is the last that they were allowed (`RunResult.unfinished`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from recbole_llm4sbr.report.block import Line
from recbole_llm4sbr.report.table import Table

UNFINISHED = "unfinished"
COLUMN = "training"  # headline of the column that says so


def note(lines: Sequence[Line]) -> str:
    """The unfinished runs of lines, with their seeds, and the setting to raise; "" where there are none."""
    found = [line for line in lines if line.unfinished]
    if not found:
        return ""
    runs = named_runs(found)
    budgets = sorted({line.results[seed].budget.epochs for line in found for seed in line.unfinished})
    epochs = ", ".join(map(str, budgets))
    ensembles = any(result.members for line in found for result in line.results.values())
    of = " (of an ensemble: that of a member)" if ensembles else ""
    return (
        f" Unfinished, since the best epoch{of} is the last one validated within epochs={epochs}: {runs}. Raise --epochs; until then these "
        f"figures support no claim."
    )


def named_runs(lines: Sequence[Line]) -> str:
    """The unfinished runs of lines, with their seeds; "" where there are none."""
    return ", ".join(f"{line.model} {line.name} ({_seeds(line.unfinished)})" for line in lines if line.unfinished)


def marked(table: Table, lines: Sequence[Line]) -> Table:
    """The table with a column behind the variant that says which of its rows are unfinished, and a note; as it is where none is.

    Args:
        table: a row for each line; model and variant are its first columns.
        lines: in the order of the rows.
    """
    if not any(line.unfinished for line in lines):
        return table
    rows = [[*row[:2], _training(line), *row[2:]] for row, line in zip(table.rows, lines)]
    return replace(
        table, how=table.how + note(lines), head=[*table.head[:2], COLUMN, *table.head[2:]], rows=rows, texts=table.texts + 1,
        best={(row, column + 1) for row, column in table.best},
    )  # fmt: skip


def in_legend(name: str, lines: Mapping[str, Line]) -> str:
    """The name of a series for a figure's legend, with the parts of it that are unfinished.

    Args:
        name: of the series.
        lines: that it shows, by what tells them apart in it.
    """
    parts = [part for part, line in lines.items() if line.unfinished]
    if not parts:
        return name
    return f"{name} ({UNFINISHED})" if len(parts) == len(lines) else f"{name} ({UNFINISHED}: {', '.join(parts)})"


def _training(line: Line) -> str:
    """What the column says of a line."""
    if not line.unfinished:
        return ""
    whole = len(line.unfinished) == len(line.results)
    return UNFINISHED if whole else f"{UNFINISHED} ({len(line.unfinished)} of {len(line.results)} seeds)"


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
