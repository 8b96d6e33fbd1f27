"""Hypothesis profiles: ``ci`` runs the same examples every time, ``long`` looks for new ones.

python -m pytest --hypothesis-profile=long
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("ci", derandomize=True, max_examples=150, database=None, **COMMON)
settings.register_profile("long", max_examples=2000, print_blob=True, **COMMON)
settings.load_profile("ci")
