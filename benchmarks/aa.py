"""How often the report calls two groups of runs different that differ in nothing but their seeds (an A/A comparison).

    recbole-llm4sbr compare --models=SRGNN --variants=plain --datasets=ml-100k --seeds=10 --epochs=200 --stopping_step=10 --out=OUT
    python benchmarks/aa.py OUT [--markdown FILE]

All ways to take two groups of 1, 2, 3 and 5 of the runs are compared as two variants would be: the verdict of `report.statistics`, and,
beside it, what the test over sessions alone would say. Unfinished runs get no verdict and are left out; single runs get none either.
"""

import argparse
import itertools
from pathlib import Path

from recbole_llm4sbr.report.block import main_metrics
from recbole_llm4sbr.report.comparisons import by_session
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.report.statistics import LEVEL, ONE_SEED, improvement, paired_p, verdict

MOST = 400  # pairs of groups of a size; further ones repeat the same runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    line = read_grids([options.out])[0].lines[0]
    seeds = sorted(set(line.ranks) - set(line.unfinished))
    text = [
        f"{line.model}, {line.variant}, {len(seeds)} runs, {len(line.sessions):,} test rows; unfinished runs, left out: "
        f"{len(line.unfinished)}",
        "",
    ]
    text += [
        "| runs in a group | metric | pairs of groups | called different | by the test over sessions alone |",
        "|---|---|---|---|---|",
    ]
    for size in (1, 2, 3, 5):
        groups = list(itertools.combinations(seeds, size))
        pairs = [(one, two) for one, two in itertools.combinations(groups, 2) if not set(one) & set(two)]
        pairs = pairs[:: max(1, len(pairs) // MOST)]
        for metric in main_metrics([line]):
            if not pairs:
                continue
            called = alone = 0
            for one, two in pairs:
                a, b = (by_session(line, metric, each) for each in (one, two))
                _, low, high = improvement(a, b)
                p = paired_p(a.mean(0), b.mean(0))
                called += verdict(low, high, p, size) in ("better", "worse")
                alone += p < LEVEL
            said = f"{called} ({100 * called / len(pairs):.1f} %)" if size > 1 else ONE_SEED
            text.append(f"| {size} | {metric} | {len(pairs)} | {said} | {100 * alone / len(pairs):.1f} % |")
            print(text[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
