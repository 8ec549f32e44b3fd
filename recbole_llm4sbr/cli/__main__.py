"""`python -m recbole_llm4sbr.cli`."""

import sys

from recbole_llm4sbr.cli.main import main

sys.exit(main())
