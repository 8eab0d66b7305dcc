"""The map format (FORMAT.md), and nothing else."""
