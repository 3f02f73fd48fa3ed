"""Composition root of the auth service."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from rich.console import Console

from libs.common import migrations
from libs.common.auth import TokenVerifier
from libs.common.bus import Bus
from libs.common.runtime import SqlRuntime
from services.auth.adapters.passwords import PwdlibPasswords
from services.auth.api import internal_router, public_router
from services.auth.consumers import HANDLERS
from services.auth.legacy import legacy_router
from services.auth.service import ApiKeys, Audit, Sessions, Users
from services.auth.settings import AuthSettings

Settings = AuthSettings
_NAME = "auth"


def create_app(
    settings: AuthSettings,
    *,
    bus: Bus,
    verifier: TokenVerifier | None = None,
    passwords: PwdlibPasswords | None = None,
) -> FastAPI:
    """Wire the service. Tests replace the check of tokens (`verifier`) and the hashing (`passwords`)."""
    runtime = SqlRuntime(_NAME, settings.common, settings.database_url, bus, handlers=HANDLERS, verifier=verifier)
    passwords = passwords or PwdlibPasswords(concurrency=settings.hash_concurrency, queue=settings.hash_queue)
    users = Users(runtime.uow, passwords, settings)
    sessions = Sessions(runtime.uow, passwords, settings)
    keys = ApiKeys(runtime.uow)

    async def read_revocations() -> Iterable[Mapping[str, Any]]:
        return [
            {"scope": one.scope, "id": one.subject_id, "revoked_at": one.revoked_at.timestamp()}
            for one in await sessions.revocations()
        ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await _first_start(users, keys, settings)
        await runtime.start(read_revocations=read_revocations)
        runtime.every(3600, sessions.sweep)
        try:
            yield
        finally:
            await runtime.close()
            passwords.close()

    return runtime.app(
        title="Telar auth",
        description="Users, sessions, API keys, quotas and the audit log.",
        area="account",
        routers=(
            public_router(users, keys, sessions, Audit(runtime.uow)),
            internal_router(sessions, users),
            legacy_router(users),
        ),
        lifespan=lifespan,
    )


async def migrate(settings: AuthSettings) -> None:
    """Bring the database to the newest schema."""
    await migrations.migrate(settings.database_url, _NAME)


async def _first_start(users: Users, keys: ApiKeys, settings: AuthSettings) -> None:
    """Make the first administrator, and the service account of a key that the operator gave."""
    made_up = await users.ensure_administrator()
    if made_up is not None:
        _show_once(settings, made_up)
    if settings.api_key is not None:
        account = await users.ensure_service_account()
        await keys.seed(account.id, settings.api_key.get_secret_value())
    structlog.get_logger().info("auth_ready", service="auth")


def _show_once(settings: AuthSettings, password: SecretStr) -> None:
    """Print the made-up password on the terminal: the logs would redact it."""
    text = password.get_secret_value()
    console = Console(stderr=True, highlight=False)
    console.print(f"Administrator: [bold]{settings.admin_username}[/]  password: [bold]{text}[/]  (shown this once)")
    if settings.initial_password_file is not None:
        settings.initial_password_file.touch(mode=0o600)
        settings.initial_password_file.write_text(text + "\n")
