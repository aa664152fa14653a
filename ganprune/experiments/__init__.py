"""Recorded experiments and the scripts that make what ships with the package."""
