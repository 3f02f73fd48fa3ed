"""Failures as Proxmox VE words them: a status code, a reason phrase and sometimes one text per parameter."""

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
SERVER_ERROR = 500
NOT_IMPLEMENTED = 501
UNSUPPORTED_BODY = 506
CONNECT_FAILED = 595
SEND_FAILED = 596


class PveError(Exception):
    """A failed call or task. Most failures are status 500; the text is both the reason phrase and a task's exit status.

    `bare` errors come from the HTTP layer and have no JSON body.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int = SERVER_ERROR,
        errors: dict[str, str] | None = None,
        bare: bool = False,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.errors = errors
        self.bare = bare


def parameter_error(name: str, text: str) -> PveError:
    """The 400 answer that names one parameter."""
    return parameter_errors({name: text})


def parameter_errors(errors: dict[str, str]) -> PveError:
    return PveError("Parameter verification failed.", status=BAD_REQUEST, errors=errors)


def denied(why: str = "") -> PveError:
    """The 403 answer; `why` is what stands between the brackets."""
    suffix = f" ({why})" if why else ""
    return PveError(f"Permission check failed{suffix}", status=FORBIDDEN)


def unauthorized(text: str) -> PveError:
    return PveError(text, status=UNAUTHORIZED, bare=True)


def locked(lock: str) -> PveError:
    return PveError(f"VM is locked ({lock})")


def flock_timeout(path: str) -> PveError:
    return PveError(f"can't lock file '{path}' - got timeout")


def only_root(name: str) -> PveError:
    return parameter_error(name, "Only root may use this option.")
