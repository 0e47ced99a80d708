"""From a study file to a Study: reading, expanding, checking, every complaint with its line."""
