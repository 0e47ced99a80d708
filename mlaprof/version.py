"""The version, for everything that must not import the package's public face."""

__version__ = "0.1.0"
