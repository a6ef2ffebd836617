"""Plain typed data of runs, traces and graphs, and how they are kept in files: no model, no picture."""
