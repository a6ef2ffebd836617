"""The circuit of one sentence: its page, picture and table."""
