"""Tile configurations found by measuring few of many: which to try next, and what was found before."""
