"""Colours, patterns, dashes and symbols of the figures.

Colours are Okabe and Ito's, which read without colour vision, but for two: black is lost on a dark page, and yellow on a light one. Every
series has a pattern, a dash or a symbol of its own as well. What is not of a series, as axes and text, has its colour from the page.
"""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#808080", "#999933")
QUIET = "#8a8a8a"  # of what stands behind
PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
