import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.common.auth import JwksClient, Revocations, Role, TokenVerifier, read_jwks
from libs.common.auth.revocations import MAX_LIFETIME_S
from libs.common.errors import Unauthenticated, Unavailable
from libs.common.testing.identity import TestIssuer
from tests.corpora.jwt.mutations import USER, Forge, b64, controls, hostile

ISSUER = TestIssuer()


@pytest.fixture(scope="module")
def mutations() -> dict[str, str]:
    """Made when the tests run: one made at import is an expired token, refused for that alone, in a long run."""
    return hostile(ISSUER)


@pytest.fixture(scope="module")
def good_tokens() -> dict[str, str]:
    return controls(ISSUER)


def test_the_corpus_is_as_large_as_promised(mutations: dict[str, str], good_tokens: dict[str, str]) -> None:
    assert len(mutations) >= 60
    assert len(set(mutations.values())) == len(mutations)
    assert not set(mutations.values()) & set(good_tokens.values())


@pytest.mark.parametrize("name", hostile(ISSUER))
async def test_no_mutation_is_accepted(name: str, mutations: dict[str, str]) -> None:
    verifier = ISSUER.verifier()
    for _ in range(2):  # nor the second time
        with pytest.raises(Unauthenticated):
            await verifier.verify(mutations[name])


@pytest.mark.parametrize("name", controls(ISSUER))
async def test_a_good_token_is_accepted(name: str, good_tokens: dict[str, str]) -> None:
    principal = await ISSUER.verifier().verify(good_tokens[name])
    assert principal.user_id in (USER, "service:vms")
    assert principal.role in Role


async def test_a_mutation_is_refused_after_its_original_was_accepted() -> None:
    forge, verifier = Forge(ISSUER), ISSUER.verifier()
    good = forge.signed()
    await verifier.verify(good)
    head, body, signature = good.split(".")
    for changed in (f"{head}.{body}.{signature}A", f"{head}.{body}", good[:-1]):
        with pytest.raises(Unauthenticated):
            await verifier.verify(changed)
    assert (await verifier.verify(good)).user_id == USER


async def test_an_accepted_token_is_refused_once_it_has_run_out() -> None:
    now = time.time()
    verifier = TokenVerifier(ISSUER, Revocations(), issuer="telar", audience="telar", now=lambda: now)
    token = ISSUER.token(USER)
    principal = await verifier.verify(token)
    assert verifier.is_good(principal)
    now += 601
    assert not verifier.is_good(principal)
    with pytest.raises(Unauthenticated, match="expired"):
        await verifier.verify(token)


@pytest.mark.parametrize(("scope", "subject"), [("session", f"session-of-{USER}"), ("user", USER)])
async def test_an_accepted_token_is_refused_once_it_is_revoked(scope: str, subject: str) -> None:
    verifier, token = ISSUER.verifier(), ISSUER.token(USER)
    principal = await verifier.verify(token)
    assert verifier.is_good(principal)
    verifier.revocations.add(scope, subject, time.time())
    assert not verifier.is_good(principal)
    with pytest.raises(Unauthenticated, match="revoked"):
        await verifier.verify(token)


async def test_a_user_who_logs_in_again_after_a_revocation_is_accepted() -> None:
    verifier = ISSUER.verifier()
    verifier.revocations.add("user", USER, time.time() - 1)
    assert (await verifier.verify(ISSUER.token(USER))).user_id == USER


async def test_a_revoked_session_is_refused_even_with_a_token_issued_later() -> None:
    """The gateway may sign for a session while auth revokes it: nothing of that session is good afterwards."""
    verifier = ISSUER.verifier()
    verifier.revocations.add("session", f"session-of-{USER}", time.time() - 5)
    with pytest.raises(Unauthenticated, match="revoked"):
        await verifier.verify(ISSUER.token(USER))


def test_a_revocation_is_forgotten_when_no_such_token_can_be_alive() -> None:
    now = 1_000_000.0
    revocations = Revocations(now=lambda: now)
    revocations.add("user", "old", now)
    now += MAX_LIFETIME_S + 31
    revocations.add("user", "new", now)
    assert set(revocations._revoked_at) == {("user", "new")}


class _Jwks:
    """A real HTTP server with a JWK set, which counts how often it is asked."""

    def __init__(self) -> None:
        self.document: Any = {"keys": [jwk_of(ISSUER)]}
        self.status = 200
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = json.dumps(outer.document).encode()
                self.send_response(outer.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/.well-known/jwks.json"
        self.thread = threading.Thread(target=lambda: self.server.serve_forever(0.05))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def jwk_of(issuer: TestIssuer) -> dict[str, str]:
    raw = issuer.private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "kid": issuer.kid, "x": b64(raw)}


@pytest.fixture
def jwks() -> Iterator[_Jwks]:
    server = _Jwks()
    yield server
    server.close()


class _Time:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


async def test_unknown_kids_cause_one_fetch_a_minute_however_many_there_are(jwks: _Jwks) -> None:
    now = _Time()
    async with httpx.AsyncClient(trust_env=False) as http:
        keys = JwksClient(jwks.url, http, now)
        verifier = TokenVerifier(keys, Revocations(), issuer="telar", audience="telar")
        assert (await verifier.verify(ISSUER.token(USER))).user_id == USER
        assert jwks.asked == 1
        for minute in range(1, 4):
            now.s += 60.0
            for number in range(30):
                with pytest.raises(Unauthenticated):
                    await verifier.verify(ISSUER.sign(ISSUER.claims(USER), kid=f"unknown-{minute}-{number}"))
            assert jwks.asked == 1 + minute


async def test_kids_of_an_impossible_form_cause_no_fetch_at_all(jwks: _Jwks) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        verifier = TokenVerifier(JwksClient(jwks.url, http), Revocations(), issuer="telar", audience="telar")
        for kid in ("../../etc/passwd", "k" * 65, "", "http://127.0.0.1/"):
            with pytest.raises(Unauthenticated):
                await verifier.verify(ISSUER.sign(ISSUER.claims(USER), kid=kid))
    assert jwks.asked == 0


async def test_an_issuer_that_fails_is_not_asked_for_every_request(jwks: _Jwks) -> None:
    now = _Time()
    jwks.status = 503
    async with httpx.AsyncClient(trust_env=False) as http:
        keys = JwksClient(jwks.url, http, now)
        for _ in range(30):
            with pytest.raises(Unavailable):
                await keys.key(ISSUER.kid)
        assert jwks.asked == 1
        jwks.status = 200
        now.s += 1.0
        assert await keys.key(ISSUER.kid) is not None
    assert jwks.asked == 2


async def test_a_rotated_key_is_found_and_the_retired_one_is_trusted_no_longer(jwks: _Jwks) -> None:
    now, fresh = _Time(), TestIssuer(kid="fresh-key")
    async with httpx.AsyncClient(trust_env=False) as http:
        verifier = TokenVerifier(JwksClient(jwks.url, http, now), Revocations(), issuer="telar", audience="telar")
        await verifier.verify(ISSUER.token(USER))
        jwks.document = {"keys": [jwk_of(fresh)]}
        now.s += 60.0
        assert (await verifier.verify(fresh.token(USER))).user_id == USER
        with pytest.raises(Unauthenticated):
            await verifier.verify(ISSUER.token(USER))


async def test_keys_that_were_fetched_outlive_an_outage_of_the_issuer(jwks: _Jwks) -> None:
    now = _Time()
    async with httpx.AsyncClient(trust_env=False) as http:
        keys = JwksClient(jwks.url, http, now)
        assert await keys.key(ISSUER.kid) is not None
        jwks.status, now.s = 500, now.s + 60
        assert await keys.key("unknown") is None
        assert await keys.key(ISSUER.kid) is not None


@pytest.mark.parametrize(
    "document",
    [[], "keys", None, 5, {"keys": 5}, {"keys": ["x"]}, {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a"}]}],
    ids=str,
)
async def test_a_key_set_that_cannot_be_read_is_an_outage_and_no_crash(jwks: _Jwks, document: Any) -> None:
    jwks.document = document
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(Unavailable):
            await JwksClient(jwks.url, http).key("a")


def test_only_ed25519_signature_keys_are_read() -> None:
    good = jwk_of(ISSUER)
    others = [
        {"kty": "RSA", "kid": "rsa", "n": "AQAB", "e": "AQAB"},
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        {**good, "kid": "../path"},
        {**good, "kid": ""},
        {**good, "crv": "Ed448", "kid": "ed448"},
        {**good, "use": "enc", "kid": "for-encryption"},
    ]
    assert set(read_jwks({"keys": [*others, good]})) == {ISSUER.kid}
