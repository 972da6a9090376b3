"""One journey to the database: what has ended is written down, and what is due is claimed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from durablestack.errors import StoreError, StoreUnavailable
from durablestack.runs import Outcome
from durablestack.stores.contract import Claim, Claimed, Exchanged, Store

from .completer import Completer
from .door import ask_store, ask_store_in_steps

log = logging.getLogger(__name__)


class Exchange:
    """What the completer has to write goes along with a claim, and back to it should that fail."""

    def __init__(self, store: Store, completer: Completer) -> None:
        self._store = store
        self._completer = completer
        self._uncertain_claims: set[UUID] = set()

    @property
    def uncertain(self) -> bool:
        """Whether a claim that failed may have leased what is yet to be released."""
        return bool(self._uncertain_claims)

    async def claim(self, claim: Claim, begun: Callable[[], None]) -> Claimed:
        """Both in one transaction; `begun` is called once the database is being asked.

        Raises:
            StoreError: nothing was claimed; or it is not known, and what was is released before the next claim.
        """
        batch = self._completer.take()
        try:
            exchanged = await self._ask(claim, [outcome for _, outcome, _ in batch], begun)
        except StoreUnavailable:
            self._completer.put_back(batch)
            raise
        except StoreError as error:
            self._completer.put_back(batch, refused=True)
            if not batch:
                raise
            log.warning("outcomes are written without a claim, which is repeated without them: %s", error)
            return (await self._ask(claim, [], begun)).claimed
        except BaseException:
            self._completer.put_back(batch)
            raise
        self._completer.written(batch, exchanged.recorded)
        return exchanged.claimed

    async def _ask(self, claim: Claim, outcomes: list[Outcome], begun: Callable[[], None]) -> Exchanged:
        try:
            return await ask_store_in_steps(self._store.exchange_in_steps(outcomes, claim), begun=begun)
        except StoreUnavailable as error:
            if error.uncertain:
                self._uncertain_claims.add(claim.lease_token)
            raise

    async def release_uncertain(self) -> None:
        """Runs that a claim leased whose answer was lost: nobody works on them, and nobody else may.

        Raises:
            StoreError: not all are released yet.
        """
        for token in list(self._uncertain_claims):
            released = await ask_store(self._store.release_claim, token)
            self._uncertain_claims.discard(token)
            if released:
                log.info("released %d runs of a claim whose answer was lost", len(released))
