"""Start of a run: cutoffs from the cost of closing edges, before the first step."""
