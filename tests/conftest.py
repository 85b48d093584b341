"""Hypothesis tries the same examples each time: a change that breaks a property fails at once, and nothing fails by chance."""

import tqdm
from hypothesis import settings

# A test forks; tqdm's monitor thread could hold its lock at that moment, and the child would wait for it for ever.
tqdm.tqdm.monitor_interval = 0

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
