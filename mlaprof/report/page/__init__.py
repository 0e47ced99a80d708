"""The report as one page: sections of text, tables and figures, answered in the order in which a reader asks.

parts.py has what a page is made of; layers.py, kernels.py and tuning.py what a run of each kind says; render.py HTML.
"""
