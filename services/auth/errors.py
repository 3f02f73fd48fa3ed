"""What the auth service refuses, by slug."""

from libs.common.errors import Conflict, Forbidden, Invalid, NotFound, Throttled, Unauthenticated


class BadCredentials(Unauthenticated):
    slug = "bad-credentials"
    title = "Wrong name or password"


class TooManyFailures(Throttled):
    slug = "too-many-failed-logins"
    title = "Too many failed logins"


class HashingBusy(Throttled):
    slug = "login-busy"
    title = "Too many logins at once"


class AccountDisabled(Forbidden):
    slug = "account-disabled"
    title = "The account is disabled"


class BadRefreshToken(Unauthenticated):
    slug = "bad-refresh-token"
    title = "The refresh token is not valid"


class BadApiKey(Unauthenticated):
    slug = "bad-api-key"
    title = "The API key is not valid"


class UserNotFound(NotFound):
    slug = "user-not-found"
    title = "No such user"


class SessionNotFound(NotFound):
    slug = "session-not-found"
    title = "No such session"


class ApiKeyNotFound(NotFound):
    slug = "api-key-not-found"
    title = "No such API key"


class UserExists(Conflict):
    slug = "user-exists"
    title = "The name or e-mail is taken"


class UserOwnsResources(Conflict):
    slug = "user-owns-resources"
    title = "The user still owns resources"


class LastAdministrator(Conflict):
    slug = "last-administrator"
    title = "This is the last administrator"


class RegistrationClosed(Forbidden):
    slug = "registration-closed"
    title = "Registration is closed"


class WiderKey(Forbidden):
    slug = "wider-key"
    title = "A key cannot make a wider key"


class WeakPassword(Invalid):
    slug = "password-refused"
    title = "The password is not acceptable"
