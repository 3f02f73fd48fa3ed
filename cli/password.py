"""`telar password`: a new password for a user, where no administrator is left who could give one."""

from pathlib import Path

from pydantic import SecretStr

from cli.backends import running_postgres
from libs.common.db import Database
from libs.common.settings import CommonSettings
from libs.common.uow import UnitOfWorkFactory
from services.auth.adapters.passwords import PwdlibPasswords
from services.auth.service import Users
from services.auth.settings import AuthSettings

_NOT_FOUND = (
    "No database of auth: `telar up` does not run in {folder}, and TELAR_AUTH_DATABASE_URL is not set."
    " Start it, name its folder with --data-dir, or run this beside the auth service."
)


async def give(name: str, password: SecretStr, data_dir: Path) -> None:
    """Write the password and end the user's sessions; raises what auth refuses, and SystemExit without a database."""
    settings = AuthSettings(common=CommonSettings(embedded=True, data_dir=data_dir))
    url: str | None = settings.database_url
    if "database_url" not in settings.model_fields_set:
        url = running_postgres(data_dir / "postgres", "auth")
    if url is None:
        raise SystemExit(_NOT_FOUND.format(folder=data_dir))
    database = Database(url, pool_size=1, application_name="telar-password")
    passwords = PwdlibPasswords(concurrency=1, queue=1)
    try:
        users = Users(UnitOfWorkFactory(database, source="/telar/auth"), passwords, settings)
        await users.give_password(name, password)
    finally:
        passwords.close()
        await database.close()
