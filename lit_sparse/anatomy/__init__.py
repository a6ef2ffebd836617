"""A model taken apart: its layers, its stack of writers and readers, checked against its own logits."""
