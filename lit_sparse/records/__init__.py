"""Plain typed data of runs, traces and graphs, and their files, without models or pictures."""
