"""Jobs that are given what they need: a mailer for the whole life of a child, a unit of work for each attempt.

python -m examples.services                                enqueues two orders, of which one is refused
python -m durablestack.supervisor examples.services        executes them, and keeps the books in orders.db
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing

from msgspec import Struct

from durablestack import DurableStack, JobContext, NoRetry, Services, durable_job

BOOKS = os.environ.get("BOOKS", "orders.db")

services = Services()
stack = DurableStack(
    __name__,
    database_url=os.environ.get("DATABASE_URL", "sqlite:///services.db"),
    poll_interval_seconds=1,
    services=services,
)


class Mailer:
    """Stands for something that takes a while to set up, such as a connection to a mail server."""

    def send(self, to: str, text: str) -> None:
        print(f"to {to}: {text}")


class UnitOfWork:
    def __init__(self, books: sqlite3.Connection) -> None:
        self.books = books

    def book(self, order: "Order", context: JobContext) -> None:
        # the run's id is the same at each attempt: an order is booked once
        self.books.execute("insert or ignore into orders values (?, ?)", (str(context.run_id), order.amount))


def begin_unit_of_work() -> Iterator[UnitOfWork]:
    """Commits if the attempt succeeds. If it fails, its error is raised at the yield."""
    with closing(sqlite3.connect(BOOKS)) as books, books:
        yield UnitOfWork(books)


services.add_singleton(Mailer)
services.add_scoped(UnitOfWork, begin_unit_of_work)


@stack.on_child_start
def open_the_books() -> None:
    with closing(sqlite3.connect(BOOKS)) as books, books:
        books.execute("create table if not exists orders (run_id text primary key, amount integer not null)")


class Order(Struct):
    customer: str
    amount: int


@durable_job(name="take-order")
class TakeOrder:
    def __init__(self, mailer: Mailer, work: UnitOfWork) -> None:
        self.mailer = mailer
        self.work = work

    def execute(self, order: Order, context: JobContext) -> None:
        self.work.book(order, context)
        if order.amount > 1_000:
            raise NoRetry("that is too much: nothing is booked")
        self.mailer.send(order.customer, f"your order of {order.amount} is booked")


if __name__ == "__main__":
    stack.migrate()
    orders = [Order("ada@example.com", 40), Order("eve@example.com", 4_000)]
    for run_id in stack.client.enqueue_many(TakeOrder, orders):
        print(f"enqueued: run {run_id}")
