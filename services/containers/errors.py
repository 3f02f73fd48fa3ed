"""What can go wrong with stacks, each failure with its stable slug."""

from collections.abc import Sequence

from libs.common.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    StorageFull,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
    UpstreamFailed,
)


class StackNotFound(NotFound):
    slug = "stack-not-found"
    title = "No such stack"

    def __init__(self) -> None:
        super().__init__("There is no such stack, or it is not yours")


class StackState(Conflict):
    slug = "stack-state"
    title = "The stack's state does not allow this"


class StackNameTaken(Conflict):
    slug = "stack-name-taken"
    title = "You have a stack of this name"


class InvalidStack(Invalid):
    """One field of the request asks for a stack that cannot be; `pointer` names it."""

    slug = "invalid-stack"
    title = "This stack cannot be made"

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail, errors=[FieldError(pointer, detail)])


class ArchiveRefused(Invalid):
    """The ZIP holds something that is never unpacked, or would unpack to too much; nothing of it was kept."""

    slug = "archive-refused"
    title = "The ZIP was refused"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, errors=[FieldError("/body/zip_file", reason)])


class ComposeRefused(Invalid):
    """The compose file asks for more than a stack may have; each error names the place in the file and why."""

    slug = "compose-refused"
    title = "The compose file is not allowed"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("See errors for each refused place in the file", errors=errors)


class EngineUnavailable(Unavailable):
    """Stacks run on a Docker engine, and none answers.

    On Debian, deploy/local/engine.sh sets one up; elsewhere install Docker Engine with the Compose v2 plugin.
    TELAR_CONTAINERS_DOCKER_HOST says where it is.
    """

    slug = "engine-unavailable"
    title = "No Docker engine answers"

    def __init__(self) -> None:
        super().__init__(
            "Run deploy/local/engine.sh on the engine's host to set one up, or let TELAR_CONTAINERS_DOCKER_HOST"
            " name one that runs; nothing was changed",
            retry_after_s=10,
        )


class EngineFailed(UpstreamFailed):
    slug = "engine-failed"
    title = "The Docker engine refused the stack"


class EngineBusy(Unavailable):
    """The engine is still at work on this stack's project."""

    slug = "engine-busy"
    title = "The Docker engine is busy with this stack"


class PortTaken(EngineFailed):
    """A host port that the database had given away is in use by something else on the engine's host."""

    slug = "port-taken"
    title = "A host port is in use"


class StackUnhealthy(UpstreamFailed):
    slug = "stack-unhealthy"
    title = "The stack did not become healthy"


class NoPortLeft(Unavailable):
    slug = "no-port-left"
    title = "No host port is left for another stack"


class CodeStoreFull(StorageFull):
    slug = "code-store-full"
    title = "No space is left for stacks' code"


class ZipTooLarge(TooLarge):
    slug = "zip-too-large"
    title = "The ZIP is too large"


class UnreadableForm(Malformed):
    slug = "unreadable-form"
    title = "The form cannot be read"


class NotAForm(UnsupportedMedia):
    slug = "not-a-form"
    title = "Send multipart/form-data or JSON"


class ForeignUserid(Forbidden):
    slug = "foreign-userid"
    title = "Only an administrator acts for another user"


class UnknownUserid(NotFound):
    slug = "unknown-userid"
    title = "No user with this userid"


class AdministratorsOnly(Forbidden):
    slug = "administrators-only"
    title = "This is for administrators"


class FileNotThere(NotFound):
    slug = "file-not-found"
    title = "No such file"

    def __init__(self) -> None:
        super().__init__("There is no such file or folder in the stack's code; links are not followed")


class FilePathRefused(Invalid):
    slug = "file-path-refused"
    title = "This path is not allowed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, errors=[FieldError("/path/path", detail)])


class FileTooLarge(TooLarge):
    slug = "file-too-large"
    title = "The stack's code would be too large"


class FolderNotEmpty(Conflict):
    slug = "folder-not-empty"
    title = "The folder is not empty"


class GitRefused(Invalid):
    """The repository's URL, or the address behind it, is none that Telar clones from."""

    slug = "git-refused"
    title = "This repository is not cloned"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, errors=[FieldError("/body/git_repo_url", detail)])


class GitFailed(UpstreamFailed):
    slug = "git-failed"
    title = "The repository could not be cloned"


class RevisionNotFound(NotFound):
    slug = "revision-not-found"
    title = "No such revision"


class RevisionUnusable(Conflict):
    """The revision was not deployed, or what it ran is not kept any more."""

    slug = "revision-unusable"
    title = "This revision cannot run again"


class HostPortTaken(Conflict):
    """The host port that a compose file asks for belongs to another stack."""

    slug = "host-port-taken"
    title = "The host port is given away"


class BuildFailed(UpstreamFailed):
    """The stack's code could not be built; the detail ends with what the build said last."""

    slug = "build-failed"
    title = "The code could not be built"


class TooManyLogStreams(Unavailable):
    slug = "too-many-log-streams"
    title = "Too many logs are being followed"
