"""The one place where the version stands; nothing else belongs here."""

__version__ = "0.1.0"
