"""AMQP topic patterns, for the bus that has no broker to match them."""

from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=4096)
def matches(pattern: str, routing_key: str) -> bool:
    """Tell whether a topic pattern covers a routing key: `*` is one word, `#` any number of words (also none).

    Source: AMQP 0-9-1, section 3.1.3.3 (the topic exchange type).
    """
    return _words_match(tuple(pattern.split(".")), tuple(routing_key.split(".")))


def any_matches(patterns: Iterable[str], routing_key: str) -> bool:
    return any(matches(pattern, routing_key) for pattern in patterns)


def _words_match(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return _words_match(pattern[1:], words) or (bool(words) and _words_match(pattern, words[1:]))
    return bool(words) and pattern[0] in {"*", words[0]} and _words_match(pattern[1:], words[1:])
