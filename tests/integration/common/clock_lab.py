"""A service that counts the ticks of clocks: its events, its handler, and a look at what came of them."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, func, select
from sqlalchemy.dialects.postgresql import insert

from libs.common.db import Database, transaction
from libs.common.events import Event, Payload
from libs.common.inbox import dead_letters_table, inbox_table
from libs.common.outbox import outbox_table
from libs.common.uow import UnitOfWork, UnitOfWorkFactory

counters = Table(
    "counters",
    MetaData(),
    Column("subject", Text, primary_key=True),
    Column("handled", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
)


class Ticked(Payload):
    event_type: ClassVar[str] = "clock.tick.happened.v1"
    number: int


async def count_tick(uow: UnitOfWork, event: Event) -> None:
    """Count every handling, and remember the newest number by sequence."""
    fresh = insert(counters).values(subject=event.subject, handled=1, last=event.sequence)
    await uow.session.execute(
        fresh.on_conflict_do_update(
            index_elements=["subject"],
            set_={"handled": counters.c.handled + 1, "last": func.greatest(counters.c.last, event.sequence)},
        )
    )


async def emptied(database: Database) -> UnitOfWorkFactory:
    """The service's units of work, on tables with nothing in them."""
    async with database.engine.begin() as connection:
        await connection.run_sync(counters.metadata.drop_all)
        await connection.run_sync(counters.metadata.create_all)
        for table in (outbox_table, inbox_table, dead_letters_table):
            await connection.execute(table.delete())
    return UnitOfWorkFactory(database, source="/telar/clock")


async def tick(uow: UnitOfWorkFactory, subject: str, number: int, *, commit: bool = True) -> None:
    async with uow() as unit:
        unit.add_event(Ticked(number=number), subject=subject, owner="ada", sequence=number)
        if commit:
            await unit.commit()


async def rows(database: Database, table: Table) -> list[Any]:
    async with transaction(database) as session:
        return list((await session.execute(select(table))).mappings())


async def handled(database: Database) -> dict[str, int]:
    return {row["subject"]: row["handled"] for row in await rows(database, counters)}


async def counted(database: Database) -> dict[str, tuple[int, int]]:
    """How many events of each subject were handled, and the highest sequence among them."""
    return {row["subject"]: (row["handled"], row["last"]) for row in await rows(database, counters)}
