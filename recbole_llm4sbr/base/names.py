"""Names of variants that the command line, grids and reports must all read: lists of names, and ensembles."""

import re

ENSEMBLE = "ensemble("  # what the name of an ensemble begins with


def split_names(text: str) -> list[str]:
    """Names with commas between them; those in round brackets belong to one name.

    >>> split_names("plain,ensemble(plain,text-init)")
    ['plain', 'ensemble(plain,text-init)']
    """
    return re.split(r",(?![^()]*\))", text)


def control_of_ensemble(name: str) -> str:
    """The control of an ensemble: as many plain models, which differ in their seeds alone.

    >>> control_of_ensemble("ensemble(plain,text-init,concat)+weights=valid")
    "ensemble(plain,plain',plain'')"
    """
    members = split_names(name.removeprefix(ENSEMBLE).rpartition(")")[0])
    return f"{ENSEMBLE}{','.join('plain' + chr(39) * number for number in range(len(members)))})"
