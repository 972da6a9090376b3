"""A run that exists exactly if your data does: enqueued inside your own transaction. Needs SQLAlchemy.

python -m examples.in_your_transaction                     registers two users, one of whom is refused
python -m durablestack.supervisor examples.in_your_transaction
"""

import os

from msgspec import Struct
from sqlalchemy import String, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from durablestack import DurableStack, durable_job

DATABASE_FILE = os.environ.get("DATABASE_FILE", "users.db")

stack = DurableStack(__name__, database_url=f"sqlite:///{DATABASE_FILE}", poll_interval_seconds=1)
engine = create_engine(f"sqlite:///{DATABASE_FILE}")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(200), primary_key=True)


class Welcome(Struct):
    to: str


@durable_job(name="welcome")
def welcome(args: Welcome) -> None:
    print(f"welcome, {args.to}")


def register(email: str) -> None:
    """The user and the run that welcomes them: both, or neither."""
    with Session(engine) as session, session.begin():
        stack.client.enqueue(welcome, Welcome(to=email), connection=session)
        session.add(User(email=email))


if __name__ == "__main__":
    stack.migrate()
    Base.metadata.create_all(engine)
    for email in ("ada@example.com", "ada@example.com"):
        try:
            register(email)
            print(f"{email} is registered, and will be welcomed")
        except IntegrityError:
            print(f"{email} is registered already: no second welcome")
    print(f"{len(stack.queries.get_runs_by_job_name('welcome'))} run is waiting")
