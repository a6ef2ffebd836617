"""A trace of one prompt: its page and picture."""
