"""Colours, patterns, dashes and symbols of the figures.

Colours are Okabe and Ito's, which read without colour vision, and every series has a pattern, a dash or a symbol of its own as well.
"""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
