"""LLM4SBR for RecBole, from a checkout: `python run_recbole_llm4sbr.py --model=SRGNN --dataset=ml-100k`; see --help."""

import sys

from recbole_llm4sbr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
