"""A delivery: nobody waits for a sink, and what is dropped is counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from told import told

from durablestack.events import Event, EventSink
from durablestack.events import delivery as module
from durablestack.events.delivery import Delivery, Seldom
from listeners import PATIENCE_SECONDS, Hanging, Listener, Raising

Deliver = Callable[..., Delivery]


@pytest.fixture
def deliver() -> Iterator[Deliver]:
    """Makes deliveries that have been started, and ends them."""
    made: list[Delivery] = []
    closing = threading.Event()

    def make(sink: EventSink, **changes: float) -> Delivery:
        made.append(Delivery(sink, lambda event: event, closing, **changes))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    closing.set()
    for delivery in made:
        delivery.hurry()
    for delivery in made:
        delivery.join(PATIENCE_SECONDS)
    assert not any(delivery._thread.is_alive() for delivery in made)


def end(delivery: Delivery, within_seconds: float = PATIENCE_SECONDS) -> None:
    delivery._closing.set()
    delivery.hurry()
    delivery.join(within_seconds)


def test_events_arrive_in_order_in_a_thread_of_the_sink(deliver: Deliver) -> None:
    sink = Listener()
    delivery = deliver(sink)
    events = [told() for _ in range(100)]
    for event in events:
        delivery.put(event)
    assert sink.until_count(100) == events
    assert len(sink.threads) == 1
    assert threading.get_ident() not in sink.threads


def test_what_is_put_from_many_threads_arrives_once_each_and_in_order(deliver: Deliver) -> None:
    sink = Listener()
    delivery = deliver(sink)

    def put(number: int) -> None:
        for attempt in range(1000):
            delivery.put(told(job_name=str(number), attempt=attempt))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = sink.until_count(4000)
    for number in range(4):
        assert [event.attempt for event in events if event.job_name == str(number)] == list(range(1000))
    assert delivery.dropped == 0


def test_events_gather_until_there_are_enough(deliver: Deliver) -> None:
    sink = Listener()
    delivery = deliver(sink, gather_seconds=3600, batch_size=5)
    for _ in range(5):
        delivery.put(told())
    sink.until_count(5)
    assert sink.calls == [5]
    assert not delivery._enough.is_set(), "then they gather again"


def test_a_few_events_are_handed_over_after_a_while(deliver: Deliver) -> None:
    sink = Listener()
    deliver(sink, gather_seconds=0.01, batch_size=5).put(told())
    sink.until_count(1)


def test_what_waits_at_the_end_is_handed_over_and_the_sink_is_closed(deliver: Deliver) -> None:
    sink = Listener()
    delivery = deliver(sink, gather_seconds=3600, batch_size=100)
    events = [told() for _ in range(7)]
    for event in events:
        delivery.put(event)
    end(delivery)
    assert sink.events == events
    assert sink.closed.is_set()


def test_a_large_backlog_is_handed_over_in_parts(deliver: Deliver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDED_OVER_MAX", 10)
    sink = Listener()
    delivery = deliver(sink, gather_seconds=3600, batch_size=1000)
    for _ in range(35):
        delivery.put(told())
    end(delivery)
    assert sum(sink.calls) == 35
    assert max(sink.calls) == 10


def test_a_sink_that_hangs_loses_its_own_events_which_are_counted_and_told(
    deliver: Deliver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WAITING_EVENTS_MAX", 10)
    hanging, good = Hanging(), Listener()
    stuck, fine = deliver(hanging), deliver(good)
    stuck.put(told())
    assert hanging.called.wait(PATIENCE_SECONDS)
    with caplog.at_level(logging.WARNING):
        for number in range(25):
            event = told()
            stuck.put(event)
            fine.put(event)
            good.until_count(number + 1)
        assert stuck.dropped == 15
        assert caplog.messages == ["event sink Hanging does not keep up: 1 events were dropped"]
        end(stuck, within_seconds=0.01)
    assert caplog.messages[1:] == [
        "event sink Hanging did not end in time: 10 events and more were not delivered",
        "event sink Hanging does not keep up: 14 events were dropped",
    ]
    hanging.let_go.set()
    assert fine.dropped == 0


def test_a_sink_that_was_given_up_is_called_no_more(deliver: Deliver) -> None:
    hanging = Hanging()
    delivery = deliver(hanging)
    delivery.put(told())
    assert hanging.called.wait(PATIENCE_SECONDS)
    delivery.put(told())
    end(delivery, within_seconds=0.01)
    hanging.let_go.set()
    delivery._thread.join(PATIENCE_SECONDS)
    assert hanging.calls == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_sink_that_raises_is_called_again_and_told_of_seldom(
    deliver: Deliver, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    sink = Raising(error)
    delivery = deliver(sink, gather_seconds=0, batch_size=1)
    for _ in range(20):
        delivery.put(told())
    end(delivery)
    assert sink.calls >= 1
    first, *rest = caplog.records
    assert first.getMessage().startswith("event sink Raising failed; ")
    assert first.exc_info is not None
    lost = [int(word) for record in (first, *rest) for word in record.getMessage().split() if word.isdigit()]
    assert (sum(lost), len(rest)) == (20, 1 if sink.calls > 1 else 0)


def test_an_event_that_cannot_be_shaped_costs_no_more_than_its_batch(deliver: Deliver) -> None:
    sink, closing = Listener(), threading.Event()

    def shape(event: Event) -> Event:
        if event.attempt == 0:
            raise ZeroDivisionError
        return event

    delivery = Delivery(sink, shape, closing, gather_seconds=0, batch_size=1)
    delivery.start()
    delivery.put(told(attempt=0))
    while delivery._waiting:
        threading.Event().wait(0.001)
    delivery.put(told(attempt=1))
    assert sink.until_count(1)[0].attempt == 1
    end(delivery)


def test_a_sink_without_close_needs_none_and_one_whose_close_raises_ends_all_the_same(deliver: Deliver) -> None:
    class Unclosable(Listener):
        def close(self) -> None:
            raise OSError("no")

    for sink in (Unclosable(), Hanging()):
        delivery = deliver(sink)
        end(delivery)
        assert not delivery._thread.is_alive()


def test_seldom_tells_the_first_time_and_then_what_has_gathered() -> None:
    now = 1_000.0
    seldom = Seldom(lambda: now)
    assert seldom.count(1) == 1
    assert [seldom.count(2) for _ in range(5)] == [0] * 5
    now += module._TELL_AGAIN_SECONDS
    assert seldom.count(1) == 11
    assert seldom.untold == 0
