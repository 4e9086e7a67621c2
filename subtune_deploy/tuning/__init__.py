"""Learning tasks: data, and SubTuning of chosen blocks."""
