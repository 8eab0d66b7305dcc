"""One file per family of localization methods."""
