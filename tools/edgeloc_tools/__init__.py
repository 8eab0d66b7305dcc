"""The offline half: recordings, maps, training, evaluation."""
