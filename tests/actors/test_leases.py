"""The table of leases: until when each may be trusted, and what is killed when it may not."""

from datetime import timedelta

import pytest
from msgspec.structs import replace
from parts import Child, Clock, may_begin, new_lease

from durablestack.ids import new_run_id
from durablestack.runs import Lease
from durablestack.supervisor.leases import GUARD_RATIO, MARGIN_RATIO, LeaseTable, boottime, trust_seconds

LEASE = timedelta(seconds=10)
TRUST = 10 * (1 - MARGIN_RATIO)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> LeaseTable:
    return LeaseTable(clock)


class Killed(list[Lease]):
    """The leases whose children were killed, in order."""

    def by(self, lease: Lease) -> Child:
        return Child(lambda: self.append(lease))


@pytest.fixture
def killed() -> Killed:
    return Killed()


def executing(leases: LeaseTable, clock: Clock, killed: Killed) -> Lease:
    """A lease just claimed, on a run that is executing."""
    lease = new_lease()
    leases.hold([lease], clock.now, LEASE)
    assert may_begin(leases, lease, killed.by(lease))
    return lease


def test_trust_is_the_lease_less_a_margin() -> None:
    assert trust_seconds(LEASE) == TRUST == 8
    assert boottime() <= boottime()


def test_what_was_taken_in_is_held(leases: LeaseTable, clock: Clock) -> None:
    some = [new_lease(), new_lease()]
    leases.hold(some, clock.now, LEASE)
    assert leases.held() == some
    assert len(leases) == 2
    leases.drop(some[:1])
    assert leases.held() == some[1:]


def test_a_run_may_begin_while_its_lease_is_trusted_and_not_after(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    lease = new_lease()
    leases.hold([lease], clock.now, LEASE)
    clock.now += TRUST - 0.001
    assert may_begin(leases, lease, killed.by(lease))
    clock.now += 0.001
    assert not may_begin(leases, lease, killed.by(lease))


def test_trust_counts_from_when_the_lease_was_asked_for(leases: LeaseTable, clock: Clock, killed: Killed) -> None:
    lease = new_lease()
    leases.hold([lease], clock.now - TRUST, LEASE)  # the answer took that long
    assert not may_begin(leases, lease, killed.by(lease))


def test_a_run_without_our_lease_may_not_begin(leases: LeaseTable, clock: Clock, killed: Killed) -> None:
    lease = executing(leases, clock, killed)
    assert not may_begin(leases, new_lease(), killed.by(lease))
    assert not may_begin(leases, replace(lease, token=new_run_id()), killed.by(lease))


def test_what_was_not_renewed_in_time_is_killed_before_anything_else_happens(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    seen: list[tuple[int, list[Lease]]] = []
    lease = new_lease()
    leases.hold([lease], clock.now, LEASE)
    may_begin(leases, lease, Child(lambda: seen.append((len(leases), list(leases._lost)))))
    clock.now += TRUST
    assert leases.lose_distrusted() == [lease]
    assert seen == [(1, [])], "it was to be killed first, then forgotten"
    assert leases.is_lost(lease)
    assert leases.held() == []


def test_only_what_is_past_its_time_is_lost(leases: LeaseTable, clock: Clock, killed: Killed) -> None:
    old = executing(leases, clock, killed)
    clock.now += 1
    young = executing(leases, clock, killed)
    clock.now += TRUST - 1
    assert leases.lose_distrusted() == [old] == killed
    assert leases.held() == [young]
    assert leases.lose_distrusted() == []
    clock.now += 1
    assert leases.lose_distrusted() == [young]
    assert killed == [old, young]


def test_what_has_ended_is_neither_killed_nor_lost_for_its_outcome_is_still_worth_recording(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    lease = executing(leases, clock, killed)
    leases.finished(lease)
    clock.now += 100 * TRUST
    assert leases.lose_distrusted() == []
    assert leases.held() == [lease]
    assert killed == []
    assert not leases.is_lost(lease)


def test_what_never_began_is_not_lost_by_time_alone(leases: LeaseTable, clock: Clock) -> None:
    lease = new_lease()
    leases.hold([lease], clock.now, LEASE)
    clock.now += 100
    assert leases.lose_distrusted() == []
    assert leases.held() == [lease]


def test_a_renewed_lease_is_trusted_from_when_it_was_asked_for(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    lease = executing(leases, clock, killed)
    clock.now += 5
    asked_at = clock.now
    clock.now += 1  # the answer took a second
    assert leases.extend({lease.run_id}, [lease], asked_at, LEASE) == []
    assert leases.seconds_to_deadline() == TRUST - 1
    clock.now = asked_at + TRUST
    assert leases.lose_distrusted() == [lease]


def test_what_was_asked_for_and_not_kept_is_killed_and_lost(leases: LeaseTable, clock: Clock, killed: Killed) -> None:
    kept, gone = executing(leases, clock, killed), executing(leases, clock, killed)
    assert leases.extend({kept.run_id}, [kept, gone], clock.now, LEASE) == [gone]
    assert killed == [gone]
    assert leases.is_lost(gone)
    assert not leases.is_lost(kept)


def test_what_has_ended_and_was_not_kept_is_let_go_without_a_word(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    lease = executing(leases, clock, killed)
    leases.finished(lease)
    assert leases.extend(set(), [lease], clock.now, LEASE) == []  # perhaps because its outcome has been recorded
    assert leases.held() == []
    assert killed == []
    assert not leases.is_lost(lease)


def test_a_run_that_expired_here_and_is_claimed_here_anew_is_killed_first(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    early = executing(leases, clock, killed)
    late = replace(early, token=new_run_id(), attempt=2)
    leases.hold([late], clock.now, LEASE)
    assert killed == [early]
    assert leases.is_lost(early)
    assert not leases.is_lost(late)
    assert leases.held() == [late]


def test_an_answer_about_an_earlier_lease_touches_not_the_later_one(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    early = executing(leases, clock, killed)
    late = replace(early, token=new_run_id(), attempt=2)
    leases.hold([late], clock.now, LEASE)
    may_begin(leases, late, killed.by(late))
    killed.clear()
    assert leases.extend(set(), [early], clock.now, LEASE) == []
    leases.finished(early)
    leases.drop([early])
    assert leases.held() == [late]
    assert killed == []
    clock.now += TRUST
    assert leases.lose_distrusted() == [late]


def test_what_was_dropped_meanwhile_is_not_lost(leases: LeaseTable, clock: Clock, killed: Killed) -> None:
    lease = executing(leases, clock, killed)
    leases.drop([lease])
    assert leases.extend(set(), [lease], clock.now, LEASE) == []
    assert killed == []


def test_a_lost_lease_is_remembered_until_its_executor_lets_go(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    for let_go in (leases.finished, lambda lease: leases.drop([lease])):
        lease = executing(leases, clock, killed)
        leases.extend(set(), [lease], clock.now, LEASE)
        assert leases.is_lost(lease)
        let_go(lease)
        assert not leases.is_lost(lease)


def test_the_deadline_is_that_of_the_run_that_is_executing_and_ends_first(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    assert leases.seconds_to_deadline() is None
    waits = new_lease()
    leases.hold([waits], clock.now - 5, LEASE)
    assert leases.seconds_to_deadline() is None
    first = executing(leases, clock, killed)
    clock.now += 2
    executing(leases, clock, killed)
    assert leases.seconds_to_deadline() == TRUST - 2
    clock.now += 1_000
    assert leases.seconds_to_deadline() == 0
    leases.finished(first)
    leases.lose_distrusted()
    assert leases.seconds_to_deadline() is None


def test_a_run_claimed_anew_ends_the_older_execution_that_is_still_here(
    leases: LeaseTable, clock: Clock, killed: Killed
) -> None:
    """As after a freeze: the lease expired, and our own claimer was quicker than the heartbeat."""
    older = executing(leases, clock, killed)
    newer = replace(older, token=new_lease().token, attempt=2)
    leases.hold([newer], clock.now, LEASE)
    assert killed == [older]
    assert leases.is_lost(older)
    assert leases.held() == [newer]


# --- a child that has several, one to be executed after the other


class Busy(Child):
    """A child, and when it was killed."""

    def __init__(self) -> None:
        self.kills = 0
        super().__init__(self._count)

    def _count(self) -> None:
        self.kills += 1

    @property
    def deadline(self) -> float | None:
        """The one that it was told last."""
        return self.trusted[-1] if self.trusted else None


GUARD = 10 * (1 - MARGIN_RATIO * (1 - GUARD_RATIO))


def begins(leases: LeaseTable, clock: Clock, child: Child) -> Lease:
    lease = new_lease()
    leases.hold([lease], clock.now, LEASE)
    assert may_begin(leases, lease, child)
    return lease


def test_a_child_has_to_be_dead_by_the_earliest_deadline_of_all_its_leases(leases: LeaseTable, clock: Clock) -> None:
    child, early = Busy(), clock.now
    begins(leases, clock, child)
    clock.now += 3
    begins(leases, clock, child)
    assert child.deadline == early + GUARD
    earlier = new_lease()
    leases.hold([earlier], early - 1, LEASE)
    may_begin(leases, earlier, child)
    assert child.deadline == early - 1 + GUARD


def test_a_child_is_let_off_once_the_last_of_its_runs_has_ended(leases: LeaseTable, clock: Clock) -> None:
    child = Busy()
    first, second = begins(leases, clock, child), begins(leases, clock, child)
    leases.finished(first)
    assert child.deadline is not None
    leases.drop([first])
    leases.drop([second])
    assert child.deadline is None
    third = begins(leases, clock, child)
    assert child.deadline == clock.now + GUARD
    leases.finished(third)
    assert child.deadline is None


def test_a_child_is_trusted_longer_once_all_its_leases_are_renewed_and_no_earlier(
    leases: LeaseTable, clock: Clock
) -> None:
    child, begun_at = Busy(), clock.now
    both = [begins(leases, clock, child), begins(leases, clock, child)]
    clock.now += 5
    leases.extend({both[0].run_id}, both[:1], clock.now, LEASE)
    assert child.deadline == begun_at + GUARD
    leases.extend({both[1].run_id}, both[1:], clock.now, LEASE)
    assert child.deadline == clock.now + GUARD


def test_a_child_is_trusted_longer_though_nothing_is_renewed_once_its_earliest_lease_has_ended(
    leases: LeaseTable, clock: Clock
) -> None:
    child = Busy()
    first = begins(leases, clock, child)
    clock.now += 5
    begins(leases, clock, child)
    later = clock.now + GUARD
    leases.finished(first)
    leases.tell_deadlines()
    assert child.deadline == later
    leases.tell_deadlines()
    assert child.trusted.count(later) == 1


def test_a_lost_lease_ends_the_child_and_the_others_are_not_lost_for_it(leases: LeaseTable, clock: Clock) -> None:
    child = Busy()
    kept, gone = begins(leases, clock, child), begins(leases, clock, child)
    assert leases.extend({kept.run_id}, [kept, gone], clock.now, LEASE) == [gone]
    assert child.kills == 1
    assert not leases.is_lost(kept)
    assert leases.held() == [kept]


def test_one_lease_that_is_past_its_time_ends_the_child_of_all(leases: LeaseTable, clock: Clock) -> None:
    child = Busy()
    old = begins(leases, clock, child)
    clock.now += 1
    begins(leases, clock, child)
    clock.now += TRUST - 1
    assert leases.lose_distrusted() == [old]
    assert child.kills == 1


def test_a_run_that_another_child_has_taken_over_is_no_longer_an_affair_of_the_first(
    leases: LeaseTable, clock: Clock
) -> None:
    """It waited behind another run, and was taken back."""
    first, second = Busy(), Busy()
    stays = begins(leases, clock, first)
    moves = begins(leases, clock, first)
    assert may_begin(leases, moves, second)
    leases.finished(moves)
    assert second.deadline is None
    clock.now += 5
    leases.extend({stays.run_id}, [stays], clock.now, LEASE)
    assert first.deadline == clock.now + GUARD, "not what was left of the lease of a run that it does not have"
    leases.finished(stays)
    assert first.deadline is None


def test_a_child_whose_only_run_another_one_has_taken_over_is_let_off(leases: LeaseTable, clock: Clock) -> None:
    first, second = Busy(), Busy()
    moves = begins(leases, clock, first)
    assert may_begin(leases, moves, second)
    assert first.deadline is None
    assert second.deadline == clock.now + GUARD
    leases.drop([moves])
    assert second.deadline is None
    assert not leases._children, "those that are gone are not remembered"


def test_a_child_that_is_never_without_runs_is_trusted_longer_though_each_heartbeat_finds_others(
    leases: LeaseTable, clock: Clock
) -> None:
    """Short runs have ended before the heartbeat that renewed their leases is answered."""
    child = Busy()
    now = begins(leases, clock, child)
    for _ in range(4):
        clock.now += 5
        asked_at, asked = clock.now, [now]
        leases.hold([after := new_lease()], clock.now, LEASE)
        may_begin(leases, after, child)
        leases.finished(now)
        now = after
        leases.extend({lease.run_id for lease in asked}, asked, asked_at, LEASE)
        assert child.deadline is not None
        assert child.deadline > clock.now, "its guard would end it, and what it executes"
    assert child.kills == 0
