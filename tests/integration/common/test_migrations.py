from importlib import import_module

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from cli.services import SERVICES
from libs.common.db import COMMON_METADATA, Database
from libs.common.migrations import migrate

SQL_SERVICES = [entry.name for entry in SERVICES if entry.database == "sql"]


@pytest.mark.parametrize("service", SQL_SERVICES)
async def test_a_services_models_are_what_its_migrations_make(new_database_url: str, service: str) -> None:
    metadata = import_module(f"services.{service}.models").METADATA

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, [metadata, COMMON_METADATA]))  # type: ignore[arg-type]  # takes several

    await migrate(new_database_url, service)
    await migrate(new_database_url, service)  # a second start changes nothing
    database = Database(new_database_url)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()
