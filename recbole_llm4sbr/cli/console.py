"""What the command line reads and prints: arguments, tables, the summary of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import parse_value


def parse_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str], dict[str, Any]]:
    """Split arguments into verb, config files and settings (values read as YAML).

    Raises:
        UserError: a key without a value, or a key given twice with different values.
    """
    rest = list(arguments)
    verb = rest.pop(0) if rest and not rest[0].startswith("-") else None
    settings: dict[str, Any] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"argument {word!r} is not understood; settings are given as --key=value")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value, as --{key}=value")
            text = rest.pop(0)
        value = parse_value(text, key)
        if settings.setdefault(key, value) != value:
            raise UserError(f"--{key} is given twice, as {settings[key]!r} and {value!r}")
    files = settings.pop("config_files", None) or []
    return verb, files.split(",") if isinstance(files, str) else [str(each) for each in files], settings


def aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned columns, all but text to the right."""
    columns = list(rows[0])
    cells = [columns] + [
        [f"{value:,.0f}" if isinstance(value, int | float) else str(value or "-") for value in row.values()] for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def summary(result: Mapping[str, Any]) -> str:
    """One table of the run: metrics of validation and test, then how they came about."""
    settings, counts, stage1 = result["settings"], result["prepare"], result["infer"]
    kind = f"LLM4SBR({settings['model']})" if settings["llm4sbr"] else f"{settings['model']}, plain"
    cutoffs = settings["topk"] if isinstance(settings["topk"], list) else [settings["topk"]]
    columns = [f"{metric}@{cutoff}" for metric in settings["metrics"] for cutoff in cutoffs]
    lines = ["", f"{kind} on {settings['dataset']}", " " * 6 + "".join(f"{column:>9}" for column in columns)]
    for part, values in (("valid", result["best_valid_result"]), ("test", result["test_result"])):
        numbers = (values.get(column.lower()) for column in columns)
        lines.append(f"{part:6}" + "".join(f"{'-' if number is None else format(number, '.4f'):>9}" for number in numbers))
    per_epoch = result["seconds_per_epoch"]
    lines += [
        f"sessions {counts['sessions']:,}, items {counts['items']:,}, clicks {counts['clicks']:,}; rows "
        + ", ".join(f"{part} {number:,}" for part, number in counts["rows"].items()),
        f"best epoch {result['best_epoch']} of 0..{result['epochs'] - 1} by {result['valid_metric']} on validation; "
        f"{sum(per_epoch) / max(len(per_epoch), 1):.2f} s per epoch, {result['seconds_training']:.0f} s training, "
        f"peak memory {result['peak_memory_mb']:,.0f} MB",
    ]
    if stage1:
        lines.append(
            f"intents from {settings['intent_source']}: {stage1['prompts']:,} prompts, {stage1['distinct_prompts']:,} distinct; "
            f"{stage1['calls']:,} calls made, {stage1['reused']:,} answers reused; {stage1['intents']:,} intents, "
            f"{stage1['no_intent']:,} missing" + (f", {stage1['not_asked']:,} not asked for" if stage1["not_asked"] else "")
        )
    if result["checkpoint"]:
        lines.append(f"checkpoint {result['checkpoint']}")
    return "\n".join(lines)
