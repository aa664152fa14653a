"""How good and how large a generator is."""
