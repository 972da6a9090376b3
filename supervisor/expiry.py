"""Whether leases are to be ended that have expired, as a claimer comes to know it.

    a claim, now and then: have some expired? --no--> rest
                                |
                                yes, or somebody says so
                                v
    before the next claim: still? by a clock that is trusted? --yes--> that claim ends them

Most claims end none. To look along with a claim costs little; to look without one costs a journey.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from durablestack.events import EventType
from durablestack.stores.contract import ExpiredLook, Store

from .bus import Emit
from .clocks import DatabaseClock
from .door import ask_store_in_steps
from .leases import boottime

log = logging.getLogger(__name__)

_REST_SECONDS_MIN = 0.5
_REST_SECONDS_MAX = 5.0
_REST_PER_LOOK = 20  # where an old snapshot keeps dead entries in the index, each look walks over them
_WAITS_FOR_THE_ENQUEUED_SECONDS = 1.0


class Expiry:
    """When to look, and what to make of it."""

    def __init__(self, store: Store, lease_duration: timedelta, emit: Emit) -> None:
        self._store = store
        self._lease_duration = lease_duration
        self._emit = emit
        self._clock = DatabaseClock(lease_duration)
        self._some = True  # nobody has looked yet
        self._look_again_at = 0.0

    def tell(self) -> None:
        """There are leases that have expired."""
        self._some = True

    def takes_a_look(self, *, in_a_hurry: bool) -> bool:
        """Whether the claim that is about to be made should look as well; what it saw is for `saw`."""
        now = boottime()
        if now < self._look_again_at + (_WAITS_FOR_THE_ENQUEUED_SECONDS if in_a_hurry else 0.0):
            return False
        self._look_again_at = now + _REST_SECONDS_MIN
        return True

    def saw(self, look: ExpiredLook, asked_at: float) -> bool:
        """Whether some have expired, as it seems."""
        self._take_in(look, asked_at)
        self._some = self._some or look.some
        return look.some

    async def confirm(self) -> bool:
        """Whether the next claim is to end leases. The database is asked once more, if there is cause to; and none is
        ended for a while after the clock that decides has jumped.

        Raises:
            StoreError: it is not known.
        """
        if not self._some:
            return False
        self._some = False  # who tells of some from here on may have seen what the look does not
        asked_at = boottime()
        try:
            look = await ask_store_in_steps(self._store.look_for_expired())
        except BaseException:
            self._some = True
            raise
        self._take_in(look, asked_at)
        return look.some and self._clock.trusted

    def _take_in(self, look: ExpiredLook, asked_at: float) -> None:
        answered_at = boottime()
        rest_seconds = max(_REST_PER_LOOK * (answered_at - asked_at), _REST_SECONDS_MIN)
        self._look_again_at = asked_at + min(rest_seconds, _REST_SECONDS_MAX)
        jump = self._clock.saw(look.now, asked_at, answered_at)
        if jump is not None:
            what = f"the database's clock has jumped by {jump.total_seconds():+.1f} s"
            log.error("%s: no lease is ended for the next %s", what, self._lease_duration)
            self._emit(EventType.CLOCK_JUMP_DETECTED, message=what)
