"""Hypothesis: no deadline per example, since the machine that runs this may be busy."""

from hypothesis import settings

settings.register_profile("fastmilter", deadline=None)
settings.load_profile("fastmilter")
