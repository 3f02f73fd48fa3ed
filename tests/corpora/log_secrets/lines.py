"""What a careless log call may hold: a canary secret inside the shapes in which secrets travel."""

from typing import Any

CANARY = "cAnaRy0123456789xyzQ"
UUID_CANARY = "c0ffee00-1234-4abc-8def-0123456789ab"
JWT = "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ"
API_KEY = f"tlr_Ab3dEf9h_{CANARY}{CANARY}abcdefghi"
PEM_BODY = "MC4CAQAwBQYDK2VwBCIEIcanaryCANARYcanaryCANARYcanaryCANARYcan"
PEM = f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}\n-----END PRIVATE KEY-----"
OPENSSH = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{PEM_BODY}\n-----END OPENSSH PRIVATE KEY-----"

TEXTS: dict[str, tuple[str, str]] = {
    "bearer token": (f"Authorization: Bearer {JWT}", JWT),
    "opaque bearer token": (f"Authorization: Bearer {CANARY}", CANARY),
    "authorization without a scheme": (f"authorization={CANARY}", CANARY),
    "basic credentials": (f"headers: Authorization: Basic {CANARY}==", CANARY),
    "JWT alone": (f"the token was {JWT} today", JWT.split(".")[1]),
    "JWT in a query": (f"GET /ws?access_token={JWT}&x=1", JWT.split(".")[2]),
    "API key alone": (f"exchange {API_KEY} failed", API_KEY),
    "API key header": (f"X-API-Key: {CANARY}", CANARY),
    "URL with user and password": (f"cloning https://bob:{CANARY}@git.example/x.git", CANARY),
    "URL with a password alone": (f"redis://:{CANARY}@127.0.0.1:6379/0", CANARY),
    "URL with a token as user": (f"https://{CANARY}@github.com/x.git", CANARY),
    "URL with @ in the password": (f"postgresql://telar:p@{CANARY}@db/telar", CANARY),
    "AMQP URL": (f"amqp://guest:{CANARY}@broker:5672/", CANARY),
    "MongoDB URL": (f"mongodb://root:{CANARY}@a,b/?replicaSet=x", CANARY),
    "PVE API token": (f"PVEAPIToken=root@pam!ci={UUID_CANARY}", UUID_CANARY),
    "PVE token id and secret": (f"using root@pam!ci={UUID_CANARY} now", UUID_CANARY),
    "PVE cookie": (f"Cookie: PVEAuthCookie=PVE:root@pam:65A1::{CANARY}", CANARY),
    "PVE ticket": (f"got PVE:root@pam:65A1B2C3::{CANARY}==", CANARY),
    "PVE VNC ticket": (f"vncticket PVEVNC:65A1B2C3::{CANARY}==", CANARY),
    "PVE CSRF token": (f"CSRFPreventionToken: 65A1B2C3:{CANARY}", CANARY),
    "cloud-init password in POST data": (f"POST https://pve/qemu {{'cipassword': '{CANARY}', 'cores': 2}}", CANARY),
    "form body": (f"username=bob&password={CANARY}&x=1", CANARY),
    "JSON body": (f'{{"username": "bob", "password": "{CANARY}"}}', CANARY),
    "JSON password of several words": (f'{{"password": "correct horse {CANARY}"}}', CANARY),
    "JSON password with marks": (f'{{"password": "a,b;c&d)e}}f {CANARY}"}}', CANARY),
    "JSON password with a quote": (f'{{"password": "a\\"b {CANARY}"}}', CANARY),
    "repr of a dict": (f"{{'password': 'a b, {CANARY}'}}", CANARY),
    "JSON in JSON": (f'"{{\\"password\\": \\"{CANARY}\\"}}"', CANARY),
    "new password": (f"new_password={CANARY}", CANARY),
    "admin pass": (f"admin_pass={CANARY}", CANARY),
    "passphrase": (f"passphrase: {CANARY}", CANARY),
    "environment": (f"MYSQL_ROOT_PASSWORD={CANARY}", CANARY),
    "joined environment name": (f"PGPASSWORD={CANARY}", CANARY),
    "client secret": (f"client_secret={CANARY}", CANARY),
    "refresh token": (f'"refresh_token": "{CANARY}"', CANARY),
    "set-cookie": (f"Set-Cookie: session={CANARY}; HttpOnly", CANARY),
    "private key": (f"key:\n{PEM}\nend", PEM_BODY),
    "OpenSSH private key": (OPENSSH, PEM_BODY),
    "private key in JSON": (PEM.replace("\n", "\\n"), PEM_BODY),
    "private key cut off": (PEM[:80], PEM_BODY[:40]),
    "private part of a JWK": (f'{{"kty": "OKP", "crv": "Ed25519", "d": "{CANARY}", "x": "pub"}}', CANARY),
    "docker login": (f"docker login --password {CANARY} registry.example", CANARY),
    "console ticket in a URL": (f"/api/v1/vms/1/console/ws?ticket={CANARY}", CANARY),
    "upper case": (f"PASSWORD={CANARY}", CANARY),
}

FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    name: ({name: CANARY}, CANARY)
    for name in (
        "password",
        "new_password",
        "passwd",
        "pwd",
        "admin_pass",
        "pass",
        "passphrase",
        "secret",
        "token",
        "refresh_token",
        "api_key",
        "apikey",
        "apiKey",
        "X-API-Key",
        "authorization",
        "Authorization",
        "cookie",
        "set-cookie",
        "private_key",
        "ticket",
        "csrf",
        "CSRFPreventionToken",
        "cipassword",
        "credentials",
        "dsn",
    )
} | {
    "a dict inside": ({"body": {"user": {"password": CANARY}}}, CANARY),
    "a list of dicts": ({"bodies": [{"password": CANARY}]}, CANARY),
    "a list under a telling name": ({"passwords": [CANARY]}, CANARY),
    "a dict under a telling name": ({"credentials": {"a": CANARY}}, CANARY),
    "header pairs": ({"headers": [("accept", "*/*"), ("x-api-key", CANARY)]}, CANARY),
    "header pairs in bytes": ({"headers": [(b"authorization", b"Bearer " + CANARY.encode())]}, CANARY),
    "cookie pairs in bytes": ({"headers": [(b"cookie", b"a=" + CANARY.encode())]}, CANARY),
    "bytes": ({"body": f"password={CANARY}".encode()}, CANARY),
    "an object's text": ({"error": ValueError(f"cannot connect to amqp://u:{CANARY}@host")}, CANARY),
    "the event's own text": ({"event": f"login with password={CANARY} failed"}, CANARY),
    "a traceback": ({"exception": f"Traceback …\n  File x\nValueError: token={CANARY}"}, CANARY),
    "a dict's key": ({"seen": {f"password={CANARY}": 1}}, CANARY),
    "a frozenset": ({"seen": frozenset({f"Bearer {CANARY}"})}, CANARY),
}

HARMLESS: tuple[dict[str, Any], ...] = (
    {"token_id": "root@pam!telar"},
    {"token_type": "bearer"},
    {"key_id": "0192f0a0", "api_key_id": "0192f0a0"},
    {"tokens": 12, "secrets_found": 0, "passed": True},
    {"passed": "12 of 12", "bypass": "no", "compass": "north"},
    {"url": "https://pve.example:8006/api2/json/nodes"},
    {"path": "/api/v1/users/me/password"},
    {"email": "bob@example.org", "image": "registry.example/app@sha256:0a1b"},
    {"event": "request_refused", "slug": "bad-credentials", "detail": "The name or the password is wrong"},
    {"detail": "The access token has expired; refresh it or log in again"},
    {"when": "12:30:00", "size": 3.5, "none": None},
    {"public": "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----"},
    {"upid": "UPID:pve1:0000A1B2:00C3D4E5:65A1B2C3:qmclone:100:root@pam!telar:"},
)
