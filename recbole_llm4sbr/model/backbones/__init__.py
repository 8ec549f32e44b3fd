"""Backbones of ours, native to the `SessionRecommender` contract. A new one is a file here and a line in `BACKBONES`."""

from recbole_llm4sbr.model.adapter import CORE, FEARec
from recbole_llm4sbr.model.backbones.bsarec import BSARec
from recbole_llm4sbr.model.backbones.dhcn import DHCN
from recbole_llm4sbr.model.backbones.gcegnn import GCEGNN
from recbole_llm4sbr.model.backbones.srgnn import SRGNN
from recbole_llm4sbr.model.backbones.stamp import STAMP
from recbole_llm4sbr.model.backbones.tagnn import TAGNN
from recbole_llm4sbr.model.contract import SessionRecommender

BACKBONES: dict[str, type[SessionRecommender]] = {
    "SRGNN": SRGNN,
    "TAGNN": TAGNN,
    "GCEGNN": GCEGNN,
    "DHCN": DHCN,
    "BSARec": BSARec,
    "STAMP": STAMP,
    # RecBole's models, each held by an adapter of its own
    "CORE": CORE,
    "FEARec": FEARec,
}
