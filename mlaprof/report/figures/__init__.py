"""Figures of a summary as matplotlib objects, and as PNG and SVG files.

1600 pixels wide, drawn to be read at 800. matplotlib is imported on first use, pyplot never.
"""
