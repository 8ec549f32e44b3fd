"""What a reader must know of a block besides its results: data, intents, protocol, settings, versions, commands. As Markdown."""

from recbole_llm4sbr.base.facts import llm_name
from recbole_llm4sbr.base.wording import show
from recbole_llm4sbr.report.block import Block, common_settings, deciding_settings
from recbole_llm4sbr.report.intents import describe_all
from recbole_llm4sbr.report.table import Table
from recbole_llm4sbr.report.tables import shown_settings


def counts_table(block: Block) -> Table:
    """The size of the data."""
    counts = block.any_result().prepare
    rows = ", ".join(f"{part} {number:,}" for part, number in counts.rows.items())
    numbers = (f"{number:,}" for number in (counts.sessions, counts.catalogue or counts.items, counts.clicks))
    head = ["rows", "sessions", "items ranked", "clicks", "average length"]
    return Table("Data", "", head, [[rows, *numbers, f"{counts.average_length}"]], 1)


def paragraphs(block: Block) -> list[str]:
    """Who made the intents, the protocol with the settings that all runs share, and what ran it."""
    result, common = block.any_result(), common_settings(block)
    selecting = " or ".join(block.valid_metrics)
    deciding = deciding_settings(block)
    shown = (key for key in shown_settings() if key in common and key in deciding)
    settings = ", ".join(f"{key} {llm_name(result.settings) if key == 'llm' else show(common[key])}" for key in shown)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return [
        f"**Intents**: {intents_said(block)}",
        f"**Protocol**: the epoch is selected on validation by {selecting}, tested once, every session ranks the whole "
        f"catalogue; within a table all models and variants have the same settings and budget but for what makes the variant. Of all "
        f"tables here: {settings}.",
        f"**Made by** {' and '.join(block.machines)}; {versions}; with",
    ]


def facts(block: Block) -> list[str]:
    """All of it as lines of Markdown."""
    said = [line for paragraph in paragraphs(block) for line in (paragraph, "")]
    return [*counts_table(block).lines(), *said, "```bash", *block.commands, "```"]


def in_short(block: Block) -> str:
    """Data and intents in a line."""
    counts = block.any_result().prepare
    return (
        f"{counts.sessions:,} sessions, {counts.catalogue or counts.items:,} items ranked, {counts.rows.get('test', 0):,} rows tested. "
        f"Intents: {intents_said(block)}"
    )


def intents_said(block: Block) -> str:
    """Who made the intents of a block's `llm4sbr`, in words."""
    if said := describe_all(block.lines):
        return said
    return "see the search below." if block.searches else "none of these models reads an LLM's intents."
