"""Hypothesis tries the same examples each time: a change that breaks a property fails at once, and nothing fails by chance."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
