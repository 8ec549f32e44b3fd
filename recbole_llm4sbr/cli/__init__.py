"""The command line: one file per verb, one argument parser."""
