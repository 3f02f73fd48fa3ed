"""robots.txt of each origin, asked for once a day and kept in bounds."""

import asyncio
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from libs.common.http import GuardedClient, Limits, OutboundError
from services.fetcher.domain import robots
from services.fetcher.domain.robots import Robots
from services.fetcher.ports import DownloadFailed

PRODUCT = "Telar-Fetcher"
_KEPT_S = 86_400.0
_UNREACHABLE_S = 60.0
_MOST = 2_000
_OK = 200
_CLIENT_ERRORS = range(400, 500)
_THROTTLED = 429


class RobotsFiles:
    """Answers for URLs; RFC 9309, 2.3: no file (4xx) allows all, an unreachable one forbids all for now."""

    def __init__(self, client: GuardedClient, *, deadline_s: float) -> None:
        self._client = client
        self._limits = Limits(
            max_bytes=robots.MAX_BYTES * 8, max_decoded_bytes=robots.MAX_BYTES * 8, total_deadline_s=deadline_s
        )
        self._known: OrderedDict[str, tuple[float, Robots]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Robots]] = {}

    async def check(self, url: str) -> None:
        """Raise DownloadFailed with `robots-refused`, or `robots-unreachable` where it cannot be known now."""
        parts = urlsplit(url)
        origin = f"{parts.scheme.lower()}://{parts.netloc.lower()}"
        found = self._known.get(origin)
        if found is not None and time.monotonic() < found[0]:
            self._known.move_to_end(origin)
            rules = found[1]
        else:
            if origin not in self._asking:
                task = asyncio.create_task(self._ask(origin), name=f"robots-{origin[:60]}")
                self._asking[origin] = task
                task.add_done_callback(lambda _: self._asking.pop(origin, None))
            rules = await asyncio.shield(self._asking[origin])
        if rules is robots.NOTHING:
            raise DownloadFailed("robots-unreachable", "The site's robots.txt cannot be read now, which forbids all.")
        if not rules.allows(url):
            raise DownloadFailed("robots-refused", "The site's robots.txt does not allow this URL.")

    async def _ask(self, origin: str) -> Robots:
        rules, kept_s = robots.NOTHING, _UNREACHABLE_S
        try:
            async with self._client.stream("GET", f"{origin}/robots.txt", limits=self._limits) as response:
                if response.status == _OK:
                    rules, kept_s = robots.parse(await response.read(), PRODUCT), _KEPT_S
                elif response.status in _CLIENT_ERRORS and response.status != _THROTTLED:
                    rules, kept_s = robots.ALL, _KEPT_S
        except OutboundError:
            rules = robots.NOTHING
        self._known[origin] = (time.monotonic() + kept_s, rules)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return rules
