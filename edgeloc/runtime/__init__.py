"""From camera frames to published poses: all state lives here."""
