"""How a run starts: cutoffs by what closing an edge costs, before the first step."""
