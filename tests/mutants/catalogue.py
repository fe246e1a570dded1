"""All seeded bugs."""

from __future__ import annotations

from typing import Final

from tests.mutants.application_bugs import APPLICATION
from tests.mutants.kernel_bugs import FIFTEEN, KERNEL

__all__ = ["ALL", "FIFTEEN"]

ALL: Final = (*KERNEL, *APPLICATION)
