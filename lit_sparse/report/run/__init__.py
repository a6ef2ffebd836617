"""A run: its plots, its page, its table, and the page that joins all that is known of it."""
