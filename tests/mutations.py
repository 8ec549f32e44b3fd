"""Do the tests notice a fault? Single operators and constants are changed at random, one at a time, and the tests run on each change.

    python tests/mutations.py [--number 100] [--seed 1] [--only PART] [--share 1/2]

Each change is made in a copy of the checkout. Printed are those that no test noticed, with their line, and how many were noticed. The
tests of the changed file run first, others that could see it only where those notice nothing. It takes about an hour of one core.

Of the hundred of seed 1, 92 are noticed. The eight others change nothing that could be seen: pieces of another size (gcegnn.py `_PIECE`
and `piece`, tagnn.py `width`), a wider stride of keys (session_graphs.py), a second untrained number (baselines.py), the length of an equal
array (training_graphs.py), the padding session, which no file names (intent_files.py), an array for no clicks at all (sessions.py).
"""

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "recbole_llm4sbr"
# changed files, and the tests that run first; then, where those notice nothing, LATER
FILES = {
    "model/losses.py": "losses formulas",
    "model/intents.py": "formulas switches",
    "model/intent_files.py": "formulas switches",
    "model/wrapper.py": "formulas switches contract",
    "model/adapter.py": "contract switches",
    "model/contract.py": "formulas switches contract",
    "model/item_init.py": "switches",
    "model/baselines.py": "switches",
    "model/session_graphs.py": "backbones srgnn",
    "model/training_graphs.py": "backbones",
    "model/backbones/srgnn.py": "srgnn backbones",
    "model/backbones/tagnn.py": "backbones",
    "model/backbones/gcegnn.py": "backbones",
    "model/backbones/dhcn.py": "backbones",
    "intent/localization.py": "localize",
    "intent/prompts.py": "prompts",
    "data/sessions.py": "sessions",
    "report/statistics.py": "statistics",
}
LATER = {
    "model": "formulas switches contract backbones",
    "intent": "infer",
    "data": "prepare",
    "report": "compare",
}  # by folder
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}  # fmt: skip


def changes(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Line, words and tree of every single change; annotations, docstrings and messages stay."""
    silent = {id(part) for node in ast.walk(tree) for part in _silent(node)}
    places = [(number, node) for number, node in enumerate(ast.walk(tree)) if id(node) not in silent]
    for number, node in places:
        for words, change in _changes(node):
            other = copy.deepcopy(tree)
            target = next(each for place, each in enumerate(ast.walk(other)) if place == number)
            change(target)
            yield getattr(node, "lineno", 0), words, other


def _silent(node: ast.AST) -> Iterator[ast.AST]:
    parts: list[ast.AST | None] = []
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        parts.append(node)
    if isinstance(node, ast.arg | ast.AnnAssign):
        parts.append(node.annotation)
    if isinstance(node, ast.FunctionDef):
        parts.append(node.returns)
    for part in parts:
        if part is not None:
            yield from ast.walk(part)


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        new = SWAPS[type(node.op)]
        yield f"{type(node.op).__name__} -> {new.__name__}", lambda n: setattr(n, "op", new())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        other = SWAPS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {other.__name__}", lambda n: n.ops.__setitem__(0, other())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield (
            f"{type(node.op).__name__} dropped",
            lambda n: setattr(n, "op", ast.UAdd() if not isinstance(n.op, ast.Not) else None),
        )
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} -> {node.value + 1}", lambda n: setattr(n, "value", n.value + 1)


class _WithoutNot(ast.NodeTransformer):
    """`not x` whose operator was taken away becomes `x`."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if node.op is None else node


def noticed(copy_of: Path, tests: str) -> bool:
    files = [f"tests/test_{name}.py" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    try:
        return subprocess.run(command, cwd=copy_of, capture_output=True, timeout=240).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of the names of the changed files")
    parser.add_argument("--share", default="1/1", help="1/2 and 2/2 in two processes do the changes of one")
    options = parser.parse_args()
    first, step = map(int, options.share.split("/"))
    every = [
        (name, line, words, tree)
        for name in FILES
        if options.only in name
        for line, words, tree in changes(ast.parse((ROOT / PACKAGE / name).read_text()))
    ]
    chosen = random.Random(options.seed).sample(every, min(options.number, len(every)))[first - 1 :: step]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "checkout"
        shutil.copytree(ROOT, here, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "results"))
        for number, (name, line, words, tree) in enumerate(chosen, 1):
            path = here / PACKAGE / name
            before = path.read_text()
            path.write_text(ast.unparse(ast.fix_missing_locations(_WithoutNot().visit(tree))))
            seen = noticed(here, FILES[name]) or noticed(here, LATER[name.partition("/")[0]])
            path.write_text(before)
            print(f"[{number}/{len(chosen)}] {name}:{line} {words}: {'noticed' if seen else 'NOT NOTICED'}", flush=True)
            if not seen:
                survivors.append(f"{name}:{line} {words}: {(ROOT / PACKAGE / name).read_text().splitlines()[line - 1].strip()}")
    print(
        f"\n{len(chosen) - len(survivors)} of {len(chosen)} changes were noticed (of {len(every)} possible, seed {options.seed})"
    )
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
