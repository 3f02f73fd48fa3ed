import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest

from gateway.tokens import ACTIVE_AFTER_S, KEEP, KeyRing, TokenIssuer
from libs.common.auth import Revocations, Role, TokenVerifier


class Now:
    def __init__(self) -> None:
        self.s = time.time()

    def __call__(self) -> float:
        return self.s


def issuer(keys: KeyRing, now: Now) -> TokenIssuer:
    return TokenIssuer(keys, issuer="telar", audience="telar", lifetime_s=600, now=now)


def issue(tokens: TokenIssuer, *, not_after: float | None = None) -> str:
    return tokens.issue(
        user_id="u1",
        username="ada",
        role=Role.CLIENT,
        session_id="s1",
        scopes=("vms",),
        not_after=not_after,
    ).text


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def ring(tmp_path: Path, now: Now) -> KeyRing:
    ring = KeyRing(tmp_path / "gateway" / "keys.json", now)
    ring.ensure()
    return ring


def test_the_key_file_is_for_its_owner_alone(ring: KeyRing, tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "d" in json.loads(path.read_text())["keys"][0]
    assert all("d" not in key for key in ring.jwks()["keys"])


def test_a_second_start_keeps_the_keys(ring: KeyRing, tmp_path: Path, now: Now) -> None:
    again = KeyRing(tmp_path / "gateway" / "keys.json", now)
    again.ensure()
    assert again.jwks() == ring.jwks()


def test_gateways_that_start_together_sign_with_the_same_key(tmp_path: Path, now: Now) -> None:
    rings = [KeyRing(tmp_path / "together" / "keys.json", now) for _ in range(8)]
    with ThreadPoolExecutor(len(rings)) as pool:
        list(pool.map(KeyRing.ensure, rings))
    assert len({ring.signing_key().kid for ring in rings}) == 1
    assert [file.name for file in (tmp_path / "together").iterdir()] == ["keys.json"]


async def test_what_the_gateway_signs_services_accept(ring: KeyRing, now: Now) -> None:
    verifier = TokenVerifier(ring, Revocations(now), issuer="telar", audience="telar", now=now)
    principal = await verifier.verify(issue(issuer(ring, now)))
    assert (principal.user_id, principal.username, principal.role) == ("u1", "ada", Role.CLIENT)
    assert principal.scopes == {"vms"}


def test_a_new_key_is_published_before_it_signs(ring: KeyRing, now: Now) -> None:
    now.s += 1000
    old = ring.signing_key().kid
    fresh = ring.rotate()
    assert {key["kid"] for key in ring.jwks()["keys"]} == {old, fresh}
    assert ring.signing_key().kid == old
    now.s += ACTIVE_AFTER_S
    assert ring.signing_key().kid == fresh


def test_rotation_keeps_the_newest_keys_only(ring: KeyRing, now: Now) -> None:
    first = ring.signing_key().kid
    made = []
    for _ in range(KEEP):
        now.s += 1000
        made.append(ring.rotate())
    assert [key["kid"] for key in ring.jwks()["keys"]] == made
    assert first not in made


async def test_a_token_signed_before_a_rotation_stays_good(ring: KeyRing, now: Now) -> None:
    token = issue(issuer(ring, now))
    ring.rotate()
    verifier = TokenVerifier(ring, Revocations(now), issuer="telar", audience="telar", now=now)
    assert (await verifier.verify(token)).user_id == "u1"


def test_a_token_never_outlives_what_it_was_made_from(ring: KeyRing, now: Now) -> None:
    claims = jwt.decode(issue(issuer(ring, now), not_after=now.s + 5), options={"verify_signature": False})
    assert claims["exp"] == pytest.approx(now.s + 5)
    claims = jwt.decode(issue(issuer(ring, now), not_after=now.s + 5000), options={"verify_signature": False})
    assert claims["exp"] == pytest.approx(now.s + 600)


async def test_another_replica_sees_a_rotation(ring: KeyRing, tmp_path: Path, now: Now) -> None:
    other = KeyRing(tmp_path / "gateway" / "keys.json", now)
    other.ensure()
    fresh = ring.rotate()
    other._looked_at = 0.0  # as if the second between two looks had passed
    assert await other.key(fresh) is not None
