"""Schema migrations with Alembic: one history per service, and the tables that every service's database shares.

Histories only move forward, so revisions have no `downgrade`: what a newer version wrote an older one cannot read, and
undoing a migration would drop it. The way back is a backup (docs/operating.md).
"""

from importlib.util import find_spec

from alembic import command, context
from alembic.config import Config
from alembic.op import get_bind
from sqlalchemy import Connection, MetaData, text

from libs.common.db import COMMON_METADATA, Database, database_errors

_ADVISORY_LOCK = 0x7E1A_0D1A
_COMMON_V1 = (
    "outbox",
    "inbox",
    "dead_letters",
    "operations",
    "leases",
    "idempotency_keys",
    "quota_accounts",
)


def create_common_tables() -> None:
    """Make the shared tables; called by each service's first migration.

    Later changes to them are migrations of their own that tolerate a table made in its newer form (IF NOT EXISTS).
    """
    COMMON_METADATA.create_all(get_bind(), tables=[COMMON_METADATA.tables[name] for name in _COMMON_V1])


def run_environment(metadata: MetaData) -> None:
    """What each service's `migrations/env.py` calls: run on the connection that `migrate` brings."""
    connection: Connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=[metadata, COMMON_METADATA], compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate(database_url: str, service: str) -> None:
    """Bring a service's database to the newest schema; replicas that start together wait for the first."""

    def upgrade(connection: Connection) -> None:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        config = alembic_config(service)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    database = Database(database_url, pool_size=1, application_name=f"telar-{service}-migrate")
    try:
        with database_errors():
            async with database.engine.begin() as connection:
                await connection.run_sync(upgrade)
    finally:
        await database.close()


def alembic_config(service: str) -> Config:
    """Alembic's configuration for the revisions under `services/<service>/migrations`."""
    package = find_spec(f"services.{service}.migrations")
    if package is None or not package.submodule_search_locations:
        raise LookupError(f"the service {service} has no migrations")
    config = Config()
    config.set_main_option("script_location", package.submodule_search_locations[0])
    config.set_main_option("path_separator", "os")
    return config
