"""Helpers that every package may use: errors, files, progress, modes, numbers as text. It imports no other package."""
