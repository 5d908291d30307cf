"""Fair comparisons of methods at equal budget: a grid of runs, shared by processes, and what comes out."""
