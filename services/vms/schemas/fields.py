"""Fields that several requests have, and their rules."""

import base64
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

_KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_USER_DATA_STARTS = ("#cloud-config", "#!", "#include", "## template: jinja", "Content-Type: multipart", "MIME-Version")


def one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line without control characters")
    return value


def public_keys(value: str) -> str:
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    for line in lines:
        if not line.isprintable() or not _is_public_key(*[*line.split(), "", ""][:2]):
            raise ValueError("must be public keys in OpenSSH's form, one a line: ssh-ed25519 AAAA… comment")
    if not lines:
        raise ValueError("must hold a key")
    return "\n".join(lines)


def _is_public_key(kind: str, text: str) -> bool:
    """Whether the text holds fields, each after its length, of which the first is the key's kind (RFC 4253, 6.6)."""
    try:
        left = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    fields: list[bytes] = []
    while left:
        size = int.from_bytes(left[:4])
        if len(left) < 4 + size:
            return False
        fields.append(left[4 : 4 + size])
        left = left[4 + size :]
    return kind in _KEY_TYPES and len(fields) > 1 and fields[0] == kind.encode()


def plain_text(value: str) -> str:
    if any(not (character.isprintable() or character == "\n") for character in value):
        raise ValueError("must not have control characters other than line ends")
    return value


def free_name(value: str) -> str:
    if value.lower() in ("current", "pending"):
        raise ValueError("is a name that Proxmox VE keeps for itself")
    return value


def guest_password(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("must not have control characters")
    return value


def user_data_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must be text")
    if not value.startswith(_USER_DATA_STARTS):
        raise ValueError(f"must begin with one of {', '.join(_USER_DATA_STARTS)}")
    return value


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), AfterValidator(one_line)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), AfterValidator(one_line)]
ClusterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
TemplateWord = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")]
OsWord = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,58}[a-z0-9])?$")]
NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Cores = Annotated[int, Field(ge=1, le=512)]
MemoryMib = Annotated[int, Field(ge=128, le=16_777_216)]
DiskGib = Annotated[int, Field(ge=1, le=131_072)]
PublicKeys = Annotated[str, StringConstraints(max_length=16_384), AfterValidator(public_keys)]
GuestUser = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.-]{0,31}$")]
GuestPassword = Annotated[SecretStr, Field(min_length=1, max_length=128), AfterValidator(guest_password)]
UserData = Annotated[str, StringConstraints(min_length=1, max_length=65_536), AfterValidator(user_data_text)]
Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000), AfterValidator(plain_text)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
