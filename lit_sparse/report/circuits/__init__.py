"""Circuits: their page, plots and table."""
