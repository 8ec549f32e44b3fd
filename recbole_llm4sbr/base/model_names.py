"""Names of models as people write them: `SR-GNN`, `srgnn` and `llm2srgnn` are SRGNN and LLM2SRGNN (no import of torch or RecBole)."""

import functools
import importlib.util
import re
from pathlib import Path

from recbole_llm4sbr.base.schema import models_with_settings

LLM2SEQ = "LLM2"  # LLM2SRGNN: the plain SRGNN whose item table starts from text (Boz et al. 2024)


def canonical_model(name: str) -> str:
    """The name of the model that is meant; any other text, and `package.module:Class`, as it stands.

    Case, hyphens and underscores do not count, unless more than one model were meant.

    >>> canonical_model("sr-gnn"), canonical_model("Sas-Rec"), canonical_model("llm2gru4rec"), canonical_model("mine:srgnn")
    ('SRGNN', 'SASRec', 'LLM2GRU4Rec', 'mine:srgnn')
    >>> canonical_model("SRGN")
    'SRGN'
    """
    known = model_names()
    if ":" in name or name in known:
        return name
    if name.casefold().startswith(LLM2SEQ.casefold()) and (backbone := _meant(name[len(LLM2SEQ) :])):
        return f"{LLM2SEQ}{backbone}"
    return _meant(name) or name


def _meant(name: str) -> str:
    """The one model whose name is alike; "" where there is none, or more than one."""
    alike = [each for each in model_names() if plain_name(each) == plain_name(name)]
    return name if name in alike else alike[0] if len(alike) == 1 else ""


def plain_name(name: str) -> str:
    """A name without what does not count in it.

    >>> plain_name("SR-GNN"), plain_name("Sas_Rec")
    ('srgnn', 'sasrec')
    """
    return re.sub(r"[-_\s]", "", name).casefold()


@functools.cache
def model_names() -> tuple[str, ...]:
    """Names of the models of this package and of RecBole's sequential ones, from the files of their settings."""
    names = set(models_with_settings())
    spec = importlib.util.find_spec("recbole")
    for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        modules = {path.stem for path in (root / "model" / "sequential_recommender").glob("*.py")}
        names |= {path.stem for path in (root / "properties" / "model").glob("*.yaml") if path.stem.lower() in modules}
    return tuple(sorted(names))
