"""Use cases of sessions: log in, refresh, log out, exchange an API key, tell what is revoked."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.auth import Principal, Role
from libs.common.ids import uuid7
from libs.common.pagination import PageRequest
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.auth import events
from services.auth.domain import (
    address_allowed,
    is_mistyped_key,
    key_digest,
    network_of,
    new_refresh_token,
    session_scopes,
)
from services.auth.errors import (
    AccountDisabled,
    BadApiKey,
    BadCredentials,
    BadRefreshToken,
    SessionNotFound,
)
from services.auth.models import ApiKey, RefreshToken, Revocation, Session, User
from services.auth.ports import Passwords
from services.auth.repository import AuthRepository
from services.auth.schemas import SessionGrant, UserOut
from services.auth.service.audit import Actor, record
from services.auth.service.throttle import Throttle, account_key
from services.auth.settings import AuthSettings

_LAST_USED_EVERY = timedelta(seconds=60)
_BAD_KEY = "The key is unknown, has ended, or may not be used from this address"


class Sessions:
    """A session is a family of refresh tokens; each is used once, and a second use ends the family."""

    def __init__(self, uow: UnitOfWorkFactory, passwords: Passwords, settings: AuthSettings) -> None:
        self._uow = uow
        self._passwords = passwords
        self._settings = settings
        self._throttle = Throttle(uow, settings)

    async def login(self, username: str, password: str, *, address: str, user_agent: str) -> SessionGrant:
        """Check a password and open a session. A missing name and a wrong password cannot be told apart."""
        await self._throttle.require_free(username, address)
        async with self._uow() as uow:
            user = await AuthRepository(uow.session).user_by_name(username)
        right, upgraded = await self._passwords.verify(password, user.password_hash if user else None)
        if user is None or not right:
            await self._throttle.failed(username, address)
            raise BadCredentials("The name or the password is wrong")
        if user.disabled:
            raise AccountDisabled("An administrator has disabled this account")
        async with self._uow() as uow:
            grant = await self._open(uow, user, account_key(username, address), address, user_agent, upgraded)
            if grant is not None:
                await uow.commit()
                return grant
        return await self.login(username, password, address=address, user_agent=user_agent)

    async def refresh(self, token: str, *, address: str) -> SessionGrant:
        """Give the next refresh token. A token used before ends the whole session: somebody else holds a copy."""
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            now = uow.clock.now()
            link = await repository.refresh_token(key_digest(token))
            session = await repository.session(link.session_id, lock=True) if link else None
            if link is None or session is None or session.revoked_at is not None or session.expires_at <= now:
                raise BadRefreshToken("Log in again")
            user = await repository.user(session.user_id)
            if user is None or user.disabled:
                raise BadRefreshToken("Log in again")
            if link.used_at is not None:
                await self._revoke(uow, session, Actor(str(user.id), user.username, address), "session.token_reused")
                await uow.commit()
                raise BadRefreshToken("This refresh token was used before: the session is closed, log in again")
            link.used_at = now
            session.last_used_at = now
            fresh = _next_token(repository, session, now)
            await uow.commit()
            return _grant(user, session, fresh)

    async def list(self, caller: Principal, request: PageRequest) -> Sequence[Session]:
        async with self._uow() as uow:
            return await AuthRepository(uow.session).sessions(UUID(caller.user_id), uow.clock.now(), request)

    async def revoke(self, session_id: UUID, caller: Principal, address: str) -> None:
        """End a session: one's own, or as administrator anybody's."""
        async with self._uow() as uow:
            session = await AuthRepository(uow.session).session(session_id, lock=True)
            if session is None or not caller.may_see(str(session.user_id)) or session.revoked_at is not None:
                raise SessionNotFound(f"There is no session {session_id}")
            await self._revoke(uow, session, Actor.of(caller, address), "session.revoked")
            await uow.commit()

    async def logout(self, session_id: str, user_id: UUID) -> None:
        """End the session of an access token; ending it twice, or a key's, changes nothing."""
        if session_id.startswith("key:"):
            return
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            session = await repository.session(UUID(session_id), lock=True)
            if session is None or session.user_id != user_id or session.revoked_at is not None:
                return
            user = await repository.user(user_id)
            name = user.username if user else ""
            await self._revoke(uow, session, Actor(str(user_id), name, session.address), "session.logged_out")
            await uow.commit()

    async def exchange_key(self, key_text: str, *, address: str) -> SessionGrant:
        """Say whom an API key speaks for; raises BadApiKey with one answer for all the ways a key can be wrong."""
        if is_mistyped_key(key_text):
            raise BadApiKey(_BAD_KEY)
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            now = uow.clock.now()
            key = await repository.api_key_by_digest(key_digest(key_text))
            user = await repository.user(key.user_id) if key else None
            usable = key is not None and (key.expires_at is None or key.expires_at > now)
            if key is None or user is None or user.disabled or not usable or not address_allowed(address, key.cidrs):
                raise BadApiKey(_BAD_KEY)
            if key.last_used_at is None or now - key.last_used_at > _LAST_USED_EVERY:
                if not await repository.note_use(key.id, now):
                    raise BadApiKey(_BAD_KEY)
                await uow.commit()
            return _key_grant(user, key)

    async def revocations(self) -> Sequence[Revocation]:
        """What was revoked within the longest life of an access token."""
        async with self._uow() as uow:
            return await AuthRepository(uow.session).revocations(uow.clock.now() - timedelta(hours=1, minutes=1))

    async def sweep(self) -> None:
        async with self._uow() as uow:
            await AuthRepository(uow.session).sweep(uow.clock.now())
            await uow.commit()

    async def _open(
        self, uow: UnitOfWork, checked: User, failures_key: str, address: str, user_agent: str, upgraded: str | None
    ) -> SessionGrant | None:
        """Open a session; None if the password is no longer the one that was checked."""
        repository = AuthRepository(uow.session)
        user = await repository.user(checked.id, lock=True)
        if user is None or user.disabled:
            raise BadCredentials("The name or the password is wrong")
        if user.password_hash != checked.password_hash:
            return None
        now = uow.clock.now()
        if upgraded is not None:
            user.password_hash = upgraded
        session = Session(
            id=uuid7(),
            user_id=user.id,
            address=address,
            user_agent=user_agent[:300],
            created_at=now,
            last_used_at=now,
            expires_at=now + timedelta(days=self._settings.refresh_token_days),
        )
        repository.add(session)
        await repository.flush()
        fresh = _next_token(repository, session, now)
        failures = await repository.forget_failures(failures_key)
        if failures >= self._settings.account_failures:
            unlocked = events.LoginUnlocked(network=network_of(address))
            uow.add_event(unlocked, subject=str(user.id), owner=str(user.id))
        await record(uow, Actor(str(user.id), user.username, address), "session.opened", str(session.id))
        return _grant(user, session, fresh)

    async def _revoke(self, uow: UnitOfWork, session: Session, actor: Actor, action: str) -> None:
        now = uow.clock.now()
        session.revoked_at = now
        await AuthRepository(uow.session).revoke("session", str(session.id), now)
        revoked = events.SessionRevoked(
            revokes=(events.Revoke(scope="session", id=str(session.id), revoked_at=now.timestamp()),)
        )
        uow.add_event(revoked, subject=str(session.id), owner=str(session.user_id))
        await record(uow, actor, action, str(session.id))


def _next_token(repository: AuthRepository, session: Session, now: datetime) -> str:
    token = new_refresh_token()
    repository.add(RefreshToken(digest=key_digest(token), session_id=session.id, issued_at=now))
    return token


def _grant(user: User, session: Session, refresh_token: str) -> SessionGrant:
    return SessionGrant(
        user=UserOut.of(user),
        session_id=str(session.id),
        scopes=list(session_scopes(Role(user.role))),
        refresh_token=refresh_token,
    )


def _key_grant(user: User, key: ApiKey) -> SessionGrant:
    return SessionGrant(
        user=UserOut.of(user), session_id=f"key:{key.id}", scopes=list(key.scopes), expires_at=key.expires_at
    )
