"""The turns in which operations get the few connections of a pool."""

import threading

from durablestack.stores.connections.pooled import Turns


def test_no_more_than_so_many_have_a_turn_at_once() -> None:
    turns = Turns(2)
    assert [turns.take(0), turns.take(0), turns.take(0)] == [True, True, False]
    turns.give_back()
    assert turns.take(0)


def test_who_gave_up_is_not_called() -> None:
    turns = Turns(1)
    assert turns.take(0)
    assert not turns.take(0.01)
    turns.give_back()
    assert turns.take(0)


def test_who_waits_is_let_in_before_whoever_comes_at_the_right_moment() -> None:
    turns = Turns(1)
    assert turns.take(0)
    waiting = threading.Thread(target=turns.take, args=(60,))
    waiting.start()
    while not turns._waiting:
        waiting.join(0.01)
    turns.give_back()
    assert not turns.take(0)
    waiting.join()
