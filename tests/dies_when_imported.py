"""A module whose import is the death of whoever imports it: see `deadly_jobs`."""

from deadly_jobs import DEATH_AT_IMPORT, die

die(DEATH_AT_IMPORT.read_text())
