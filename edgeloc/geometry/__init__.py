"""Rigid motions, cameras, pose solvers: pure functions on arrays."""
