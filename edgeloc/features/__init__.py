"""Local features, matching and retrieval: pure functions on arrays."""
