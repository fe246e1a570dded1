"""All seeded bugs."""

from __future__ import annotations

from typing import Final

from tests.mutants.actor_bugs import ACTORS, TIMERS
from tests.mutants.application_bugs import APPLICATION
from tests.mutants.classic_bugs import FIFTEEN
from tests.mutants.supervision_bugs import SUPERVISION

__all__ = ["ALL", "FIFTEEN"]

ALL: Final = (*FIFTEEN, *SUPERVISION, *ACTORS, *TIMERS, *APPLICATION)
