"""Stage 2 as runs: RecBole's config, dataset and trainer over the prepared files; fit, test, load again."""
