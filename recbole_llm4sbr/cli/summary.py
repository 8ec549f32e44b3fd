"""The table at the end of a run."""

from collections.abc import Sequence

from recbole_llm4sbr.base.facts import tower_said
from recbole_llm4sbr.base.results import RunResult


def summary(result: RunResult) -> str:
    """Metrics of validation and test, then how they came about."""
    settings, counts = result.settings, result.prepare
    kind = f"LLM4SBR({settings['model']})" if settings["llm4sbr"] else f"{settings['model']}, plain"
    kind = f"ensemble of {len(result.members)} models" if result.members else kind + tower_said(settings)
    columns = result.metric_names()
    wide = [max(9, len(column) + 2) for column in columns]
    head = "".join(f"{column:>{width}}" for column, width in zip(columns, wide))
    lines = ["", f"{kind} on {settings['dataset']}", " " * 6 + head]
    for part, values in (("valid", result.best_valid_result), ("test", result.test_result)):
        numbers = (values.get(column.lower()) for column in columns)
        cells = ("-" if number is None else f"{number:.4f}" for number in numbers)
        lines.append(f"{part:6}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, wide)))
    lines += _by_clicks(result, columns)
    lines.append(
        f"sessions {counts.sessions:,}, items ranked {counts.catalogue:,}, clicks {counts.clicks:,}; rows "
        + ", ".join(f"{part} {number:,}" for part, number in counts.rows.items())
    )
    if not settings["repeatable"]:
        lines.append("the items of a session are no candidates in it (repeatable=false)")
    lines += [f"{each.weight:6.3f}  {each.name}: {each.checkpoint}" for each in result.members] or _of_training(result)
    if result.unfinished:
        lines.append(result.advice())
    return "\n".join(lines)


def _by_clicks(result: RunResult, columns: Sequence[str]) -> list[str]:
    """The test by the training clicks of the target, where cold items are ranked."""
    lines = ["test by the clicks of the target in the training part:"] if result.by_clicks else []
    for each in result.by_clicks:
        numbers = (f"{name} {each.result[name.lower()]:.4f}" for name in columns if name.lower() in each.result)
        lines.append(f"  {each.clicks} ({each.rows:,} rows): {', '.join(numbers)}")
    return lines


def _of_training(result: RunResult) -> list[str]:
    """How a model's metrics came about."""
    settings, intents, per_epoch = result.settings, result.infer, result.seconds_per_epoch
    lines = [
        f"best epoch {result.best_epoch} of 0..{result.epochs - 1} by {result.valid_metric} on validation; "
        f"{sum(per_epoch) / max(len(per_epoch), 1):.2f} s per epoch, {result.seconds_training:.0f} s training, "
        f"peak memory {result.peak_memory_mb:,.0f} MB",
    ]
    if intents:
        lines.append(
            f"intents from {settings['intent_source']}: {intents.prompts:,} prompts, {intents.distinct_prompts:,} distinct; "
            f"{intents.calls:,} calls made, {intents.reused:,} answers reused; {intents.intents:,} intents, "
            f"{intents.no_intent:,} missing"
            + (f", of these {intents.cut:,} with an answer that was cut (raise --llm_max_new_tokens)" if intents.cut else "")
            + (f", {intents.not_asked:,} not asked for" if intents.not_asked else "")
        )
    if result.checkpoint:
        lines.append(f"checkpoint {result.checkpoint}")
    return lines
