"""What this process may ask of which domain now: permits held under leases, paces, domains in trouble."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import ceil

import structlog

from services.fetcher.domain import troubles
from services.fetcher.domain.troubles import DomainState, Manners
from services.fetcher.models import Permit
from services.fetcher.ports import DomainRepository, PermitRepository

EVERYTHING = "*"
"""The name under which the permits of the whole deployment are kept; no host can have it."""
_ASK_AGAIN_MS = 1_000
_IDLE_MS = 1_000
_STEP_BACK_MS = 3_000

_log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    number: int
    busy: bool = False
    next_ms: int = 0
    used_ms: int = 0
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to one download, to be given back with `end`."""

    domain: str
    number: int
    overall: int


@dataclass(slots=True, kw_only=True)
class Need:
    """What waits here for a domain: how many, and the first permit number that none of them may use."""

    count: int = 0
    below: int = 0


@dataclass(slots=True)
class _Record:
    """What this process saw of a domain since it last went well or badly."""

    unreachable: int = 0
    good: int = 0


class Politeness:
    """Permits are numbered: a job that may have n downloads at once from a domain uses those below n only.

    So a limit holds over any number of processes, and a download costs no call: permits are kept for as long as
    there is work, renewed together, and handed over when another process asks.
    """

    def __init__(
        self,
        permits: PermitRepository,
        domains: DomainRepository,
        manners: Manners,
        *,
        holder: str,
        lease_ms: int,
        max_downloads: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._permits = permits
        self._domains = domains
        self._manners = manners
        self._holder = holder
        self._lease_ms = lease_ms
        self._max_downloads = max_downloads
        self._now_ms = now_ms
        self._held: defaultdict[str, dict[int, _Held]] = defaultdict(dict)
        self._turn = asyncio.Lock()
        self._valid_until_ms = 0
        self._states: dict[str, DomainState] = {}
        self._records: defaultdict[str, _Record] = defaultdict(_Record)
        self._unwritten: dict[str, DomainState | None] = {}
        self._not_before_ms: dict[str, int] = {}
        self._ceilings: dict[str, tuple[int, int]] = {}
        self.next_start_ms = 0
        """When a permit that was refused for its pace is free; 0 if none was."""

    @property
    def has_news(self) -> bool:
        """Whether `sync` should run soon, for the other processes' sake."""
        return bool(self._unwritten)

    def begin(self, domain: str, *, below: int, rate_per_s: float | None) -> Grant | None:
        """A grant if one of the domain's permits below that number and one of all downloads is free here now."""
        now_ms = self._now_ms()
        if now_ms >= self._valid_until_ms:
            return None
        state = self._states.get(domain)
        if state is not None:
            if now_ms < state.blocked_until_ms:
                return None
            below = min(below, state.width)
        overall = self._free(EVERYTHING, self._max_downloads, now_ms)
        if overall is None:
            return None
        below = pace_width(below, rate_per_s)
        found = self._free(domain, below, now_ms)
        if found is None:
            return None
        overall.busy = found.busy = True
        overall.used_ms = found.used_ms = now_ms
        if rate_per_s:
            found.next_ms = now_ms + ceil(1000 * below / rate_per_s)
        return Grant(domain, found.number, overall.number)

    def end(self, grant: Grant) -> None:
        for domain, number in ((grant.domain, grant.number), (EVERYTHING, grant.overall)):
            held = self._held[domain].get(number)
            if held is not None:
                held.busy = False
                held.used_ms = self._now_ms()

    def _free(self, domain: str, below: int, now_ms: int) -> _Held | None:
        """The highest free number: the low ones are all that some jobs may use."""
        numbers: dict[int, _Held] = self._held.get(domain, {})
        for number in sorted(numbers, reverse=True):
            held = numbers[number]
            if held.busy or held.wanted or number >= below:
                continue
            if held.next_ms <= now_ms:
                return held
            self.next_start_ms = min(self.next_start_ms or held.next_ms, held.next_ms)
        return None

    def report(self, domain: str, reason: str | None, retry_after_s: float | None = None) -> None:
        """Tell how a download went; `reason` is None where the domain did what was asked of it."""
        now_ms, state, record = self._now_ms(), self._states.get(domain), self._records[domain]
        changed: DomainState | None = None
        if reason is not None and troubles.is_throttling(reason):
            record.good = record.unreachable = 0
            changed = troubles.throttled(domain, state, self._manners, now_ms=now_ms, retry_after_s=retry_after_s)
        elif reason is not None and troubles.is_unreachable(reason):
            record.good = 0
            record.unreachable += 1
            changed = troubles.unreachable(domain, state, self._manners, now_ms=now_ms, in_a_row=record.unreachable)
        else:
            self._went_well(domain, state, record)
            return
        if changed is not None:
            record.unreachable = 0
            self._states[domain] = self._unwritten[domain] = changed
            _log.info("domain_left_alone", domain=domain, reason=reason, until_ms=changed.blocked_until_ms)

    def _went_well(self, domain: str, state: DomainState | None, record: _Record) -> None:
        record.unreachable = 0
        if state is None:
            del self._records[domain]
            return
        record.good += 1
        changed = troubles.recovered(state, self._manners, good_answers=record.good)
        if changed != state:
            record.good = 0
            self._unwritten[domain] = changed
            if changed is None:
                del self._states[domain]
            else:
                self._states[domain] = changed

    def is_dead(self, domain: str) -> bool:
        state = self._states.get(domain)
        return state is not None and self._now_ms() < state.dead_until_ms

    def left_alone(self) -> set[str]:
        """Domains none of whose items should be taken now: blocked, or other processes have all their permits."""
        now_ms = self._now_ms()
        blocked = {name for name, state in self._states.items() if now_ms < state.blocked_until_ms}
        return blocked | (self._taken_by_others(now_ms) - {EVERYTHING})

    def is_shut_out(self) -> bool:
        """Whether nothing can start here now, whatever its domain: other processes have all permits there are."""
        return EVERYTHING in self._taken_by_others(self._now_ms())

    def _taken_by_others(self, now_ms: int) -> set[str]:
        return {
            name for name, until_ms in self._not_before_ms.items() if now_ms < until_ms and not self._held.get(name)
        }

    async def acquire(self, needs: Mapping[str, Need]) -> None:
        """Get permits for what waits here, as far as there are free ones; the call is free where none is missing."""
        async with self._turn:
            await self._acquire(needs)

    async def _acquire(self, needs: Mapping[str, Need]) -> None:
        now_ms = self._now_ms()
        if self._held and now_ms >= self._valid_until_ms:
            await self._renew(now_ms)
        missing: dict[str, int] = {}
        everything = Need(count=sum(need.count for need in needs.values()), below=self._max_downloads)
        for domain, need in ((EVERYTHING, everything), *needs.items()):
            short = self._short(domain, need, now_ms)
            if short > 0 and now_ms >= self._not_before_ms.get(domain, 0):
                missing[domain] = short
        if not missing:
            return
        belows = {domain: self._below(domain, needs.get(domain, everything)) for domain in missing}
        await self._take({name: self._others(name, belows[name])[:count] for name, count in missing.items()})
        missing = {
            name: short for name in missing if (short := self._short(name, needs.get(name, everything), now_ms)) > 0
        }
        if missing:
            await self._take_what_is_free(missing, belows)

    async def _take_what_is_free(self, missing: Mapping[str, int], belows: Mapping[str, int]) -> None:
        """The lowest numbers are others'; look at who has what, take the free rest, ask the greediest for one."""
        now_ms = self._now_ms()
        holders = await self._permits.holders(list(missing), now_ms=now_ms)
        wanted = {}
        for domain, count in missing.items():
            taken = holders.get(domain, {})
            wanted[domain] = [number for number in self._others(domain, belows[domain]) if number not in taken][:count]
        await self._take(wanted)
        asked = []
        for domain in missing:
            if len(wanted[domain]) >= missing[domain]:
                continue
            self._not_before_ms[domain] = now_ms + _ASK_AGAIN_MS
            others = {number: who for number, who in holders.get(domain, {}).items() if who != self._holder}
            usable = {number: who for number, who in others.items() if number < belows[domain]}
            greediest = Counter(others.values()).most_common(1)
            if greediest and greediest[0][1] > len(self._held.get(domain, ())) + 1:
                numbers = sorted(number for number, who in usable.items() if who == greediest[0][0])
                asked += [Permit(domain, number) for number in numbers[:1]]
        await self._permits.ask(asked)

    async def sync(self, busy_domains: Collection[str]) -> None:
        """Renew, give up what others ask for or nothing here needs, and learn of domains in trouble."""
        async with self._turn:
            now_ms = self._now_ms()
            if self._held:
                await self._renew(now_ms)
                await self._give_up(busy_domains, now_ms)
        unwritten, self._unwritten = self._unwritten, {}
        try:
            for state in unwritten.values():
                if state is not None:
                    await self._domains.note(state)
            await self._domains.forget([name for name, state in unwritten.items() if state is None])
        except BaseException:  # nobody else knows of it yet
            self._unwritten = unwritten | self._unwritten
            raise
        known = {state.domain: state for state in await self._domains.in_trouble()}
        self._states = known | {name: state for name, state in self._unwritten.items() if state is not None}
        self._not_before_ms = {name: at for name, at in self._not_before_ms.items() if at > now_ms}

    async def close(self) -> None:
        """Give back all permits."""
        await self._release([(name, held) for name in list(self._held) for held in self._held[name].values()])

    async def _renew(self, now_ms: int) -> None:
        until_ms = now_ms + self._lease_ms
        self._keep(await self._permits.renew(self._holder, now_ms=now_ms, until_ms=until_ms), now_ms)
        self._valid_until_ms = until_ms - self._lease_ms // 4

    def _keep(self, renewed: Collection[Permit], now_ms: int) -> None:
        """Forget what was lost (a lease that ran out while the job store was away), mark what is asked for.

        What is ours there and unknown here is taken up: the answer about it was lost on its way.
        """
        kept = {permit.id: permit for permit in renewed}
        for domain, numbers in list(self._held.items()):
            for number in list(numbers):
                permit = kept.pop(Permit(domain, number).id, None)
                if permit is None:
                    del numbers[number]
                elif permit.wanted and not numbers[number].wanted:
                    numbers[number].wanted = True
                    self._ceilings[domain] = (len(numbers) - 1, now_ms + _STEP_BACK_MS)
            if not numbers:
                del self._held[domain]
        for permit in kept.values():
            self._held[permit.domain][permit.number] = _Held(permit.number, used_ms=now_ms, wanted=permit.wanted)

    async def _give_up(self, busy_domains: Collection[str], now_ms: int) -> None:
        given: list[tuple[str, _Held]] = []
        for domain, numbers in self._held.items():
            idle = domain not in busy_domains and (domain != EVERYTHING or not busy_domains)
            given += [
                (domain, held)
                for held in numbers.values()
                if not held.busy and (held.wanted or (idle and now_ms - held.used_ms > _IDLE_MS))
            ]
        await self._release(given)

    async def _release(self, given: Collection[tuple[str, _Held]]) -> None:
        for domain, held in given:
            self._held[domain].pop(held.number, None)
            if not self._held[domain]:
                del self._held[domain]
        if given:
            permits = [Permit(domain, held.number, held.next_ms) for domain, held in given]
            await self._permits.release(self._holder, permits, now_ms=self._now_ms())

    async def _take(self, wanted: Mapping[str, list[int]]) -> None:
        wanted = {domain: numbers for domain, numbers in wanted.items() if numbers}
        if not wanted:
            return
        now_ms = self._now_ms()
        until_ms = now_ms + self._lease_ms
        if not self._held:
            self._valid_until_ms = until_ms - self._lease_ms // 4
        for permit in await self._permits.take(self._holder, wanted, now_ms=now_ms, until_ms=until_ms):
            self._held[permit.domain][permit.number] = _Held(permit.number, used_ms=now_ms)

    def _below(self, domain: str, need: Need) -> int:
        """The first number that is of no use now: the jobs' limits, or less where the domain is in trouble."""
        state = self._states.get(domain)
        return min(need.below, state.width) if state is not None else need.below

    def _short(self, domain: str, need: Need, now_ms: int) -> int:
        """How many more permits there is work for; one above the limit is no use, however many are held."""
        below = self._below(domain, need)
        ceiling, until_ms = self._ceilings.get(domain, (0, 0))
        most = min(below, ceiling) if now_ms < until_ms else below
        usable = [held for held in self._held.get(domain, {}).values() if held.number < below and not held.wanted]
        return min(need.count + sum(held.busy for held in usable), most) - len(usable)

    def _others(self, domain: str, below: int) -> list[int]:
        """Numbers that are not held here, lowest first."""
        numbers = self._held.get(domain, {})
        return [number for number in range(below) if number not in numbers]


def pace_width(below: int, rate_per_s: float | None) -> int:
    """How many permits a pace may be spread over: so few that a burst is a second's worth at most."""
    return min(below, max(1, ceil(rate_per_s))) if rate_per_s else below
