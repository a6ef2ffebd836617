"""What every room may use: errors, files, progress, modes, numbers as people read them. Knows no other room."""
