"""What the command line is made of; :mod:`ganprune.__main__` is its entrance."""
