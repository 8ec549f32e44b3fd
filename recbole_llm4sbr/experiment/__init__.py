"""Many runs: grids of models and variants (`compare`, `ablate`), and searches with Ray Tune (`tune`)."""
