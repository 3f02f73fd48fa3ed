"""Access tokens that no verifier may accept: each is a good one with one thing wrong."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.common.testing.identity import TestIssuer

CLAIMS = ("exp", "iat", "iss", "aud", "sub", "sid", "jti", "role", "scopes", "username")
USER = "0192f0a0-0000-7000-8000-000000000001"
_HUNDRED_YEARS_S = 100 * 365 * 86_400


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class Forge:
    """Builds tokens by hand, as a library would refuse to."""

    def __init__(self, issuer: TestIssuer) -> None:
        self.issuer = issuer
        self.claims = issuer.claims(USER, role="ADMIN")
        self.header: dict[str, Any] = {"alg": "EdDSA", "typ": "at+jwt", "kid": issuer.kid}

    def signed_text(self, header: str | bytes, payload: str | bytes) -> str:
        """Sign any two texts with the issuer's own key."""
        head, body = (b64(part.encode() if isinstance(part, str) else part) for part in (header, payload))
        return f"{head}.{body}.{b64(self.issuer.private_key.sign(f'{head}.{body}'.encode()))}"

    def signed(self, header: Mapping[str, Any] | None = None, claims: Mapping[str, Any] | None = None) -> str:
        """Sign with the issuer's own key, some header fields and claims changed; a value of `...` takes one away."""
        return self.signed_text(_changed(self.header, header), _changed(self.claims, claims))

    def with_signature(self, header: Mapping[str, Any], signature: bytes) -> str:
        return f"{b64(_changed(self.header, header).encode())}.{b64(json.dumps(self.claims).encode())}.{b64(signature)}"

    def hs256(self, secret: bytes, alg: str = "HS256") -> str:
        head = b64(_changed(self.header, {"alg": alg}).encode())
        signing = f"{head}.{b64(json.dumps(self.claims).encode())}"
        return f"{signing}.{b64(hmac.new(secret, signing.encode(), hashlib.sha256).digest())}"

    def by_library(self, key: Any, alg: str, **headers: Any) -> str:
        return jwt.encode(self.claims, key, algorithm=alg, headers={**self.header, "alg": alg, **headers})


def _changed(whole: Mapping[str, Any], changes: Mapping[str, Any] | None) -> str:
    merged = {**whole, **(changes or {})}
    return json.dumps({name: value for name, value in merged.items() if value is not ...})


def controls(issuer: TestIssuer) -> dict[str, str]:
    """Good tokens built by the same means: without them a verifier that refuses all would pass."""
    forge = Forge(issuer)
    whole = {"iat": int(time.time()), "exp": int(time.time()) + 600}
    return {
        "by the library": issuer.token(USER),
        "by hand": forge.signed(),
        "whole seconds": forge.signed(claims=whole),
        "an unknown claim": forge.signed(claims={"colour": "blue"}),
        "an unknown header field": forge.signed({"colour": "blue"}),
        "no scopes at all": forge.signed(claims={"scopes": []}),
        "the longest life": forge.signed(claims={"exp": forge.claims["iat"] + 3600}),
        "a service": forge.signed(claims={"role": "SERVICE", "sub": "service:vms"}),
    }


def hostile(issuer: TestIssuer) -> dict[str, str]:
    """All mutations by name."""
    forge = Forge(issuer)
    found: dict[str, str] = {}
    for family in (_algorithms, _keys_in_headers, _key_ids, _types, _missing, _times, _claims, _json, _shapes):
        for name, token in family(forge):
            assert name not in found, name
            found[name] = token
    return found


def _algorithms(forge: Forge) -> Iterator[tuple[str, str]]:
    for alg in ("none", "None", "NONE", "nOnE", "none ", ""):
        yield f"alg {alg!r} without a signature", forge.with_signature({"alg": alg}, b"")
        yield f"alg {alg!r} with the right signature", forge.signed({"alg": alg})
    yield "alg missing", forge.signed({"alg": ...})
    for alg in (None, 0, True, ["EdDSA"], {"EdDSA": 1}):
        yield f"alg is {alg!r}", forge.signed({"alg": alg})
    for alg in ("eddsa", "EDDSA", "Ed25519", "EdDSA ", "Ed448"):
        yield f"alg {alg!r}", forge.signed({"alg": alg})
    public = forge.issuer.private_key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    jwk = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": b64(raw)}).encode()
    for name, secret in {"PEM": pem, "raw": raw, "DER": der, "JWK": jwk, "x": b64(raw).encode(), "empty": b""}.items():
        yield f"HS256 with the public key as secret ({name})", forge.hs256(secret)
        yield f"EdDSA in the header, HMAC of the {name} key", forge.hs256(secret, "EdDSA")
    yield "RS256 with an RSA key", forge.by_library(rsa.generate_private_key(65537, 2048), "RS256")
    yield "PS256 with an RSA key", forge.by_library(rsa.generate_private_key(65537, 2048), "PS256")
    yield "ES256 with an EC key", forge.by_library(ec.generate_private_key(ec.SECP256R1()), "ES256")
    yield "RS256 in the header, Ed25519 signature", forge.signed({"alg": "RS256"})
    yield "ES256 in the header, Ed25519 signature", forge.signed({"alg": "ES256"})
    yield "Ed448", forge.by_library(Ed448PrivateKey.generate(), "EdDSA")
    yield "another Ed25519 key", forge.by_library(Ed25519PrivateKey.generate(), "EdDSA")


def _keys_in_headers(forge: Forge) -> Iterator[tuple[str, str]]:
    foreign = Ed25519PrivateKey.generate()
    x = b64(foreign.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": forge.issuer.kid}
    url = "http://127.0.0.1:9/jwks.json"
    for name, value in {"jwk": jwk, "jku": url, "x5u": url, "x5c": ["AAAA"], "x5t": "AAAA"}.items():
        yield f"foreign key in {name}", forge.by_library(foreign, "EdDSA", **{name: value})
        yield f"foreign key in {name}, unknown kid", forge.by_library(foreign, "EdDSA", **{name: value, "kid": "other"})
    for value in (["exp"], [], ["b64"], "exp", None):
        yield f"crit {value!r}", forge.signed({"crit": value})
    yield "b64 false and crit (RFC 7797)", forge.signed({"b64": False, "crit": ["b64"]})
    yield "b64 false", forge.signed({"b64": False})


def _key_ids(forge: Forge) -> Iterator[tuple[str, str]]:
    kids: dict[str, Any] = {
        "a path": "../../../../etc/passwd",
        "an absolute path": "/dev/null",
        "SQL": "x' UNION SELECT 'secret' --",
        "a URL": "http://127.0.0.1:9/key",
        "a command": "|whoami",
        "very long": "k" * 65_536,
        "too long by one": "k" * 65,
        "empty": "",
        "a number": 7,
        "null": None,
        "a list": [forge.issuer.kid],
        "an object": {"kid": forge.issuer.kid},
        "true": True,
        "another case": forge.issuer.kid.upper(),
        "with a newline": forge.issuer.kid + "\n",
        "with NUL": forge.issuer.kid + "\0",
        "with a blank": " " + forge.issuer.kid,
        "a lone surrogate": "\ud800",
        "a full-width look-alike": "\uff54est-key",
    }
    for name, kid in kids.items():
        yield f"kid is {name}", forge.signed({"kid": kid})
    yield "kid missing", forge.signed({"kid": ...})


def _types(forge: Forge) -> Iterator[tuple[str, str]]:
    for typ in ("JWT", "jwt", "application/at+jwt", "AT+JWT", "refresh+jwt", "id+jwt", "", None, ["at+jwt"]):
        yield f"typ {typ!r}", forge.signed({"typ": typ})
    yield "typ missing", forge.signed({"typ": ...})


def _missing(forge: Forge) -> Iterator[tuple[str, str]]:
    for claim in CLAIMS:
        yield f"{claim} missing", forge.signed(claims={claim: ...})
        yield f"{claim} null", forge.signed(claims={claim: None})
    yield "no claims", forge.signed_text(json.dumps(forge.header), "{}")


def _times(forge: Forge) -> Iterator[tuple[str, str]]:
    now = time.time()
    changes: dict[str, dict[str, Any]] = {
        "expired a second ago": {"iat": now - 600, "exp": now - 1},
        "expired a day ago": {"iat": now - 87_000, "exp": now - 86_400},
        "exp in a hundred years": {"exp": now + _HUNDRED_YEARS_S},
        "a life one second too long": {"exp": forge.claims["iat"] + 3601},
        "exp before iat": {"iat": now, "exp": now - 10},
        "exp equals iat": {"iat": now + 5, "exp": now + 5},
        "iat in an hour": {"iat": now + 3600, "exp": now + 4200},
        "iat in an hour and exp before it": {"iat": now + 3600, "exp": now + 600},
        "iat zero": {"iat": 0},
        "iat negative": {"iat": -1, "exp": now + 600},
        "nbf in an hour": {"nbf": now + 3600},
        "nbf is a word": {"nbf": "soon"},
    }
    for claim in ("exp", "iat"):
        for value in ("2099-01-01", "9999999999", "", True, False, [9_999_999_999], {"n": 1}, 10**400):
            changes[f"{claim} is {str(value)[:30]!r} ({type(value).__name__})"] = {claim: value}
    numeric_text = {"iat": str(int(now)), "exp": str(int(now) + 600)}
    changes["both moments as texts of numbers"] = numeric_text
    for name, change in changes.items():
        yield name, forge.signed(claims=change)
    for claim in ("exp", "iat", "nbf"):
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
            text = json.dumps({**forge.claims, claim: 0}).replace(f'"{claim}": 0', f'"{claim}": {value}')
            yield f"{claim} is {value}", forge.signed_text(json.dumps(forge.header), text)


def _claims(forge: Forge) -> Iterator[tuple[str, str]]:
    changes: dict[str, dict[str, Any]] = {
        "iss of another": {"iss": "https://evil.example"},
        "iss empty": {"iss": ""},
        "iss a list": {"iss": ["telar"]},
        "iss with a suffix": {"iss": "telar.evil.example"},
        "aud of another": {"aud": "other"},
        "aud a list": {"aud": ["telar"]},
        "aud a list with another": {"aud": ["other", "telar"]},
        "aud an object": {"aud": {"telar": 1}},
        "aud in another case": {"aud": "TELAR"},
        "role unknown": {"role": "ROOT"},
        "role in lower case": {"role": "admin"},
        "role a list": {"role": ["ADMIN"]},
        "role empty": {"role": ""},
        "role true": {"role": True},
        "scopes a text": {"scopes": "*"},
        "scopes an object": {"scopes": {"*": True}},
        "scopes with a number": {"scopes": ["vms", 1]},
        "scopes nested": {"scopes": [["*"]]},
        "scopes true": {"scopes": True},
    }
    for claim in ("sub", "sid", "jti", "username"):
        for value in ("", 5, True, ["x"], {"x": 1}):
            changes[f"{claim} is {value!r}"] = {claim: value}
    for name, change in changes.items():
        yield name, forge.signed(claims=change)


def _json(forge: Forge) -> Iterator[tuple[str, str]]:
    header, claims = json.dumps(forge.header), json.dumps(forge.claims)
    good_then_bad = claims[:-1] + ', "aud": "other"}'
    yield "aud twice, the last one foreign", forge.signed_text(header, good_then_bad)
    yield "exp twice, the last one far", forge.signed_text(header, claims[:-1] + ', "exp": 99999999999}')
    yield "alg twice, the last one none", forge.signed_text(header[:-1] + ', "alg": "none"}', claims)
    yield "typ twice, the last one JWT", forge.signed_text(header[:-1] + ', "typ": "JWT"}', claims)
    for name, text in {
        "a list": "[]",
        "a text": '"at+jwt"',
        "a number": "1",
        "null": "null",
        "empty": "",
        "not JSON": "{alg:EdDSA}",
        "a trailing comma": '{"alg": "EdDSA",}',
        "nested deep": '{"a":' + "[" * 20_000 + "]" * 20_000 + "}",
        "a number of 5,000 digits": '{"a":' + "9" * 5000 + "}",
    }.items():
        yield f"header is {name}", forge.signed_text(text, claims)
        yield f"claims are {name}", forge.signed_text(header, text)
    yield "header in Latin-1", forge.signed_text('{"alg": "EdDSA", "typ": "é"}'.encode("latin-1"), claims)
    yield "claims in Latin-1", forge.signed_text(header, '{"sub": "é"}'.encode("latin-1"))


def _shapes(forge: Forge) -> Iterator[tuple[str, str]]:
    good = forge.signed()
    head, body, signature = good.split(".")
    other = Forge(forge.issuer)
    other.claims["sub"] = "somebody-else"
    yield "signature of another token", f"{head}.{body}.{other.signed().split('.')[2]}"
    yield "claims of another token", f"{head}.{other.signed().split('.')[1]}.{signature}"
    yield "truncated signature", good[:-2]
    yield "half a signature", f"{head}.{body}.{signature[:43]}"
    yield "empty signature", f"{head}.{body}."
    yield "no signature part", f"{head}.{body}"
    yield "a zero signature", f"{head}.{body}.{b64(bytes(64))}"
    yield "a longer signature", f"{head}.{body}.{signature}AAAA"
    yield "a flipped bit in the signature", f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    yield "an extra part", f"{good}.{signature}"
    yield "an empty extra part", f"{good}."
    yield "a leading dot", f".{good}"
    yield "five parts (JWE)", f"{head}.{body}.{signature}.{body}.{signature}"
    yield "only dots", ".."
    yield "empty", ""
    yield "a word", "token"
    yield "bad base64 in the header", f"!{head[1:]}.{body}.{signature}"
    yield "bad base64 in the claims", f"{head}.*{body[1:]}.{signature}"
    yield "bad base64 in the signature", f"{head}.{body}.%{signature[1:]}"
    yield "a length base64 cannot have", f"{head}.{body}A.{signature}"
    yield "not ASCII", f"{head}.{body}é.{signature}"
    yield "a blank inside", f"{head}.{body} .{signature}"
    yield "nested: a token as the claims", forge.signed_text(json.dumps({**forge.header, "cty": "JWT"}), good)
    yield "nested: a token in quotes", forge.signed_text(json.dumps(forge.header), json.dumps(good))
    flattened = {"protected": head, "payload": body, "signature": signature}
    yield "JSON serialisation", json.dumps(flattened)
    yield "a megabyte of noise", f"{head}.{'A' * 1_000_000}.{signature}"
