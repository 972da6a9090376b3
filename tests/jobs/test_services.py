"""What a job asks for by type: who makes it, how often, and what is said when nobody can."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from attempts import Child
from dishka import Provider, Scope

from durablestack import JobContext, JobDefinitionError, Services
from durablestack.options import JobActivation

NewChild = Callable[..., Child]
ROOT = JobActivation.ROOT_PROVIDER


class Clock:
    pass


class Mailer:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock


class Session:
    pass


class Repository:
    def __init__(self, session: Session) -> None:
        self.session = session


@pytest.fixture
def new_child() -> Iterator[NewChild]:
    made: list[Child] = []

    def new_child(*arguments: Any, **keywords: Any) -> Child:
        made.append(Child(*arguments, **keywords))
        return made[-1]

    yield new_child
    for child in made:
        child.close()


@pytest.fixture
def services() -> Services:
    return Services()


# --- lifetimes


def test_a_singleton_is_made_once_a_scoped_service_once_per_attempt_a_transient_each_time(
    services: Services, new_child: NewChild
) -> None:
    services.add_singleton(Mailer)
    services.add_scoped(Session)
    services.add_transient(Clock)
    got: list[Any] = []

    def job(context: JobContext) -> None:
        for kind in (Mailer, Session, Clock):
            got.append([context.services.get(kind), context.services.get(kind)])

    child = new_child(services)
    child.succeed(job)
    child.succeed(job)
    (mailers, sessions, clocks), (mailers_2, sessions_2, clocks_2) = got[:3], got[3:]
    assert len({*mailers, *mailers_2}) == 1
    assert [len({*sessions}), len({*sessions_2}), len({*sessions, *sessions_2})] == [1, 1, 2]
    assert len({*clocks, *clocks_2}) == 4


def test_another_child_has_singletons_of_its_own(services: Services, new_child: NewChild) -> None:
    services.add_singleton(Clock)
    got: list[Clock] = []

    def job(context: JobContext) -> None:
        got.append(context.services.get(Clock))

    new_child(services).succeed(job)
    new_child(services).succeed(job)
    assert got[0] is not got[1]


def test_nothing_is_made_before_it_is_asked_for(services: Services, new_child: NewChild) -> None:
    services.add_singleton(Clock, lambda: pytest.fail("nobody asked"))
    services.add_scoped(Session, lambda: pytest.fail("nobody asked"))
    new_child(services).succeed(lambda: None)


def test_what_is_added_again_replaces_what_was_there(services: Services, new_child: NewChild) -> None:
    services.add_singleton(str, lambda: "first")
    services.add_scoped(str, lambda: "second")

    def job(context: JobContext) -> None:
        assert context.services.get(str) == "second"

    new_child(services).succeed(job)


# --- constructors


class SendsMail:
    def __init__(self, mailer: Mailer, *, session: Session, retries: int = 3) -> None:
        self.mailer, self.session, self.retries = mailer, session, retries

    def execute(self, context: JobContext) -> None:
        assert self.mailer is context.services.get(Mailer)
        assert self.session is context.services.get(Session)
        assert self.retries == 3


@dataclass
class IsADataclass:
    mailer: "Mailer"

    async def execute(self) -> None:
        assert isinstance(self.mailer.clock, Clock)


class MayHaveAClock:
    clocks: list[Clock | None] = []  # noqa: RUF012

    def __init__(self, clock: Clock | None = None) -> None:
        self.clocks.append(clock)

    def execute(self) -> None: ...


@pytest.mark.parametrize("job", [SendsMail, IsADataclass])
def test_a_job_is_given_what_its_constructor_asks_for(job: Any, services: Services, new_child: NewChild) -> None:
    services.add_singleton(Mailer)
    services.add_singleton(Clock)
    services.add_scoped(Session)
    new_child(services, job).succeed(job)


def test_a_parameter_with_a_default_keeps_it_exactly_if_its_type_is_not_registered(
    services: Services, new_child: NewChild
) -> None:
    MayHaveAClock.clocks.clear()
    new_child(services, MayHaveAClock).succeed(MayHaveAClock)
    services.add_singleton(Session)
    new_child(services, MayHaveAClock).succeed(MayHaveAClock)
    services.add_singleton(Clock)
    new_child(services, MayHaveAClock).succeed(MayHaveAClock)
    assert MayHaveAClock.clocks[:2] == [None, None]
    assert isinstance(MayHaveAClock.clocks[2], Clock)


def test_services_keep_their_defaults_too(services: Services, new_child: NewChild) -> None:
    def make_name(host: str = "localhost", clock: Clock | None = None) -> bytes:
        assert clock is not None
        return host.encode()

    services.add_singleton(bytes, make_name)
    services.add_singleton(Clock)

    def job(context: JobContext) -> None:
        assert context.services.get(bytes) == b"localhost"

    new_child(services).succeed(job)


def test_a_protocol_stands_for_whatever_its_factory_makes(services: Services, new_child: NewChild) -> None:
    class Sends(Protocol):
        def send(self) -> str: ...

    class Post:
        def send(self) -> str:
            return "sent"

    services.add_singleton(Sends, Post)

    def job(context: JobContext) -> None:
        assert context.services.get(Sends).send() == "sent"

    new_child(services).succeed(job)


def test_a_service_may_ask_for_the_context_of_the_attempt(services: Services, new_child: NewChild) -> None:
    services.add_scoped(str, lambda: "unused")

    def describe(context: JobContext) -> str:
        return f"run {context.run_id}"

    services.add_scoped(str, describe)

    def job(context: JobContext) -> None:
        assert context.services.get(str) == f"run {context.run_id}"

    child = new_child(services)
    child.succeed(job)
    child.succeed(job)


def test_a_job_class_that_is_a_service_itself_is_got_as_one(services: Services, new_child: NewChild) -> None:
    class Counts:
        calls = 0

        def execute(self) -> None:
            self.calls += 1

    counts = Counts()
    services.add_singleton(Counts, lambda: counts)
    child = new_child(services, Counts)
    child.succeed(Counts)
    child.succeed(Counts)
    assert counts.calls == 2


# --- what cannot be made


def test_a_job_that_asks_for_what_is_not_registered_is_refused_with_all_that_is_needed_to_mend_it(
    services: Services,
) -> None:
    services.add_singleton(Clock)
    with pytest.raises(JobDefinitionError) as refused:
        Child(services, SendsMail)
    here = __name__
    assert str(refused.value) == (
        f"job 'SendsMail' cannot be made: parameter 'mailer' asks for {here}.Mailer, which is not registered; add it "
        "to the services of the DurableStack, as in services.add_singleton(Mailer), or give the parameter a default; "
        f"registered are: {here}.Clock"
    )
    with pytest.raises(JobDefinitionError, match="none is registered"):
        Child(Services(), SendsMail)


def test_a_service_that_asks_for_what_is_not_registered_is_refused(services: Services) -> None:
    services.add_singleton(Mailer)
    with pytest.raises(JobDefinitionError, match=r"singleton service \S+Mailer cannot be made: parameter 'clock' asks"):
        Child(services)


def test_a_singleton_cannot_have_what_lives_shorter(services: Services) -> None:
    services.add_singleton(Repository)
    services.add_scoped(Session)
    with pytest.raises(JobDefinitionError, match=r"'session' asks for \S+Session, which lives for one attempt only"):
        Child(services)


def test_services_that_need_each_other_are_refused(services: Services) -> None:
    def clock_of(mailer: Mailer) -> Clock:
        return mailer.clock

    services.add_singleton(Mailer)
    services.add_singleton(Clock, clock_of)
    with pytest.raises(JobDefinitionError, match=r"in a circle: \S+ -> \S+ -> and so on"):
        Child(services)


def test_what_no_annotation_tells_is_refused(services: Services) -> None:
    def unannotated(clock):  # type: ignore[no-untyped-def]
        return clock

    def unresolvable(clock: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    services.add_singleton(Clock, unannotated)
    with pytest.raises(JobDefinitionError, match="parameter 'clock' has no annotation"):
        Child(services)
    services.add_singleton(Clock, unresolvable)
    with pytest.raises(JobDefinitionError, match="annotation 'Nowhere' of parameter 'clock' cannot be resolved"):
        Child(services)
    with pytest.raises(JobDefinitionError, match="5 cannot make it; pass a class or a function"):
        services.add_scoped(Clock, 5)  # type: ignore[arg-type]
    with pytest.raises(JobDefinitionError, match=r"is no instance of dishka\.Provider"):
        services.add_provider(Clock)


@pytest.mark.parametrize("registered", [False, True])
def test_getting_what_is_not_registered_tells_what_is(
    registered: bool, services: Services, new_child: NewChild
) -> None:
    if registered:
        services.add_singleton(Clock)

    def job(context: JobContext) -> None:
        context.services.get(Mailer)

    result = new_child(services).fail(job)
    assert result.error_type == "durablestack.errors.ServiceError"
    told = f"registered are: {__name__}.Clock" if registered else "none is registered"
    assert result.error_message == f"service {__name__}.Mailer is not registered; {told}"


def test_a_factory_that_raises_fails_the_attempt_and_is_asked_again_by_the_next(
    services: Services, new_child: NewChild
) -> None:
    answers = iter([ValueError("not yet"), None])

    def make_clock() -> Clock:
        if (error := next(answers)) is not None:
            raise error
        return Clock()

    services.add_singleton(Clock, make_clock)
    services.add_singleton(Mailer)
    services.add_scoped(Session)
    child = new_child(services, SendsMail)
    assert child.fail(SendsMail).error_message == "not yet"
    child.succeed(SendsMail)


def test_services_are_for_the_thread_of_the_job_and_for_the_time_of_the_attempt(
    services: Services, new_child: NewChild
) -> None:
    services.add_scoped(Session)
    kept: list[JobContext] = []

    def in_another_thread(context: JobContext) -> None:
        kept.append(context)
        raised: list[Exception] = []

        def get() -> None:
            try:
                context.services.get(Session)
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=get)
        thread.start()
        thread.join()
        raise raised[0]

    def too_late() -> None:
        kept[0].services.get(Session)

    child = new_child(services)
    assert "in another thread than the job's" in child.fail(in_another_thread).error_message
    assert "after the attempt has ended" in child.fail(too_late).error_message


# --- root_provider


class HasARepository:
    def __init__(self, repository: Repository) -> None: ...

    def execute(self) -> None: ...


def test_with_root_provider_a_job_whose_constructor_needs_something_scoped_is_refused(services: Services) -> None:
    services.add_scoped(Session)
    services.add_transient(Repository)
    with pytest.raises(JobDefinitionError, match=r"asks for \S+Repository: .*job_activation is root_provider"):
        Child(services, HasARepository, activation=ROOT)


def test_with_root_provider_something_scoped_cannot_be_got_and_the_rest_can(
    services: Services, new_child: NewChild
) -> None:
    services.add_scoped(Session)
    services.add_transient(Repository)
    services.add_singleton(Mailer)
    services.add_transient(Clock)
    got: list[Clock] = []

    def gets_a_session(context: JobContext) -> None:
        context.services.get(Session)

    def gets_a_repository(context: JobContext) -> None:
        context.services.get(Repository)

    def gets_others(context: JobContext) -> None:
        assert context.services.get(Mailer) is context.services.get(Mailer)
        got.extend([context.services.get(Clock), context.services.get(Clock)])

    child = new_child(services, activation=ROOT)
    message = child.fail(gets_a_session).error_message
    assert "Session cannot be had here: it lives for one attempt" in message
    assert "job_activation is root_provider" in message
    message = child.fail(gets_a_repository).error_message
    assert f"it needs {__name__}.Session, which lives for one attempt" in message
    child.succeed(gets_others)
    assert got[0] is not got[1]


def test_a_transient_lives_as_long_as_what_it_needs_lets_it(services: Services, new_child: NewChild) -> None:
    """One that needs nothing scoped can be part of a singleton; one that does, or has a clean-up, cannot."""
    services.add_transient(Clock)
    services.add_singleton(Mailer)
    Child(services).close()

    def clock_with_clean_up() -> Iterator[Clock]:
        yield Clock()

    services.add_transient(Clock, clock_with_clean_up)
    with pytest.raises(JobDefinitionError, match="lives for one attempt only"):
        Child(services)


# --- dishka as it is


def test_a_provider_of_dishka_is_taken_as_it_is(services: Services, new_child: NewChild) -> None:
    provider = Provider()
    provider.provide(Clock, scope=Scope.APP)
    provider.provide(Session, scope=Scope.REQUEST)
    provider.alias(source=Clock, provides=object)
    services.add_provider(provider)
    services.add_singleton(Mailer)
    services.add_transient(Repository)
    got: list[Any] = []

    def job(context: JobContext) -> None:
        got.append(context.services.get(Repository).session)
        assert context.services.get(object) is context.services.get(Mailer).clock

    child = new_child(services, MayHaveAClock)
    child.succeed(job)
    child.succeed(job)
    assert got[0] is not got[1]
    child.succeed(MayHaveAClock)
    assert isinstance(MayHaveAClock.clocks[-1], Clock)


def test_who_has_no_services_does_not_wait_for_dishka() -> None:
    code = "import sys, durablestack.supervisor.application; sys.exit('dishka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
