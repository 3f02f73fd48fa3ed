"""What a site's robots.txt allows (RFC 9309): groups by product token, the longest matching rule wins. Pure."""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

MAX_BYTES = 512_000
"""RFC 9309, 2.5 asks for at least 500 KiB; what lies beyond is not read."""
_SAFE = "/%:@!$&'()*+,;=~-._?"


@dataclass(frozen=True, slots=True)
class Rule:
    """`pieces` stand one after another in a path, with anything between them; `anchored` ends with the path."""

    allow: bool
    pieces: tuple[str, ...]
    anchored: bool
    length: int

    def matches(self, path: str) -> bool:
        """Whether a path begins so; the leftmost place of each piece is right, so that no search goes back."""
        if not path.startswith(self.pieces[0]):
            return False
        at = len(self.pieces[0])
        *middle, last = self.pieces[1:] or ("",)
        for piece in middle:
            found = path.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        if not self.anchored:
            return path.find(last, at) >= 0
        return len(path) - at >= len(last) and path.endswith(last) if len(self.pieces) > 1 else at == len(path)


@dataclass(frozen=True, slots=True)
class Robots:
    """The rules that concern us."""

    rules: tuple[Rule, ...]

    def allows(self, url: str) -> bool:
        """Whether a URL may be fetched; between an allow and a disallow of equal length the allow wins."""
        parts = urlsplit(url)
        path = _normal(parts.path or "/") + (f"?{_normal(parts.query)}" if parts.query else "")
        matches = [rule for rule in self.rules if rule.matches(path)]
        return max(matches, key=lambda rule: (rule.length, rule.allow)).allow if matches else True


ALL = Robots(())
NOTHING = Robots((Rule(allow=False, pieces=("/",), anchored=False, length=1),))


def parse(data: bytes, product: str) -> Robots:
    """The rules of all groups that name the product, else of those for `*`."""
    groups: dict[str, list[Rule]] = {}
    agents: list[str] = []
    in_rules = False
    for line in data[:MAX_BYTES].decode("utf-8-sig", "replace").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            if in_rules:
                agents, in_rules = [], False
            agents.append(_token(value))
            groups.setdefault(agents[-1], [])
        elif name in ("allow", "disallow"):
            in_rules = True
            for agent in agents if value else ():  # an empty rule matches nothing
                groups[agent].append(_rule(value, allow=name == "allow"))
    return Robots(tuple(groups.get(product.lower(), groups.get("*", []))))


def _token(value: str) -> str:
    if value == "*":
        return "*"
    found = re.match(r"[A-Za-z_-]+", value)
    return found.group().lower() if found else ""


def _rule(value: str, *, allow: bool) -> Rule:
    """`*` stands for anything, `$` at the end for the path's end (RFC 9309, 2.2.3)."""
    anchored = value.endswith("$")
    text = value[:-1] if anchored else value
    pieces = tuple(_normal(piece) for piece in re.split(r"\*+", text))
    return Rule(allow, pieces, anchored, len(value))


def _normal(text: str) -> str:
    """Percent-encoded one way only, so that `%7e` and `~` are the same (RFC 9309, 2.2.2)."""
    kept = re.sub(r"%(2[fF]|3[fF])", r"%25\1", text)  # an encoded / or ? is not the character itself
    return quote(unquote(kept), safe=_SAFE)
