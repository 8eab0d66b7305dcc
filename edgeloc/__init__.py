"""Visual localization on small computers: the device half."""

__version__ = "0.1.0"
