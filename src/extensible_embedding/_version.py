"""The version, in one place: the build and `extensible --version` read it from here."""

__version__ = "0.1.0"
