"""A model taken apart into its layers and into writers and readers of the residual stream, checked by its logits."""
