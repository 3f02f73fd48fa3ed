"""What counts as a secret in a log line, by the name it stands under and by its own look, and its blotting out."""

import re
from typing import Any

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(
    r"""passw | passphrase | (?<![a-z])pass(?![a-z]) | pwd | secret | token | authorization | api[_-]?key | cookie
      | private | credential | ticket | csrf | signature | dsn | (?<![a-z])otp(?![a-z])
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HARMLESS_NAMES = frozenset({"token_id", "api_key_id", "key_id", "token_type"})
_QUOTED_OR_WORD = r"""(?:\\"(?:(?!\\").)* | "(?:[^"\\]|\\.)* | '(?:[^'\\]|\\.)* | [^\s"'&,;)}]+)"""
_SECRET_TEXT = re.compile(
    rf"""-----BEGIN[ A-Z0-9]*PRIVATE[ ]KEY-----.*?(?:-----END[ A-Z0-9]*PRIVATE[ ]KEY-----|\Z)
      | (?:(?<![\w-])|(?<=\\[nrt]))eyJ[\w-]{{8,}}\.[\w-]+\.[\w-]*       # a JWT
      | tlr_[A-Za-z0-9]{{4,}}_[A-Za-z0-9_-]{{16,}}                    # an API key
      | authorization\\?["']?\s*[=:]\s*\\?["']?(?:[A-Za-z]+\s+)?[^\s"',;)}}]+
      | \b(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{{8,}}
      | (?:set-)?cookie\s*[=:]\s*[^\r\n"']+
      | PVE(?:APIToken|AuthCookie)=[^\s,;"']+
      | \bPVE(?:VNC)?:[^\s"',;&]+                                   # a Proxmox VE ticket
      | ![A-Za-z][\w.-]{{0,64}}=[0-9a-f-]{{36}}                       # a Proxmox VE token: user@realm!name=secret
      | (?<=/image-files/)[\w-]{{40,}}                              # a link that needs no login
      | (?:X-Amz-)?Signature=[\w-]+
      | (?<=://)[^/?\#\s"'<>]+(?=@)                                 # user:password in a URL
      | --[\w-]{{0,40}}?(?:password|token|secret)[ =]\S+              # on a command line
      | ["']d["']\s*:\s*["'][\w-]{{16,}}                              # the private part of a JWK
      | (?:password|passwd|passphrase|(?<![A-Za-z])pass|pwd|secret|token|api[_-]?key|ticket|private_?key)
        \\?["']?\s*[=:]\s*{_QUOTED_OR_WORD}
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_PAIR = 2


def redact_text(value: str) -> str:
    """Blot out what looks like a credential anywhere in a text."""
    return _SECRET_TEXT.sub(REDACTED, value)


def redact(value: Any, name: str = "") -> Any:
    """Blot out secrets in a log value: whole values under telling names, and what looks like a credential elsewhere."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if _tells_of_a_secret(name):
        return REDACTED
    if isinstance(value, dict):
        return {redact_text(_text(key)): redact(item, _text(key)) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) == _PAIR and isinstance(value[0], str | bytes):
        return [redact_text(_text(value[0])), redact(value[1], _text(value[0]))]  # a header and its value
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    return redact_text(_text(value))


def _tells_of_a_secret(name: str) -> bool:
    return bool(name) and name not in _HARMLESS_NAMES and _SECRET_NAME.search(name) is not None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
