"""How a run ends: measured, exported, drawn and summed up."""
