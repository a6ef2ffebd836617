"""The options of every command, apart from what it does: known without torch, so that help comes at once."""
