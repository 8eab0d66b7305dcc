"""Commands of the device half."""
