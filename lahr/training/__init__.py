"""One training run: the loop that yields progress, evaluation, the optimiser and checkpoints."""
