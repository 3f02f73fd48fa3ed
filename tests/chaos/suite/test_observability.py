"""What the running suite tells: one trace over all processes, and figures for every dashboard and rule."""

import asyncio
import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.chaos.figures import Figures
from tests.chaos.suite.cluster import Cluster
from tests.chaos.suite.collector import Collector, Span
from tests.chaos.suite.load import Load
from tests.chaos.suite.test_processes import final, made_machine
from tests.contract.common.test_observability import FOLDER, queries

pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker, pytest.mark.timeout(600)]
Eventually = Callable[..., Awaitable[None]]
SCRAPE_S = 2
MAY_BE_EMPTY = {
    # what only something that goes wrong, or that this suite is never asked for, brings about
    "telar-events: Not taken by the broker",
    "telar-events: Dead letters made",
    "telar-work: Pictures",
    "telar-work: Image files read again",
    "rules: TelarOperationNeedsOperator",
}


async def test_one_trace_goes_from_the_gateway_over_the_broker_to_the_task_of_proxmox(
    cluster: Cluster, collector: Collector, figures: Figures, eventually: Eventually
) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    async with cluster.client(headers={"traceparent": f"00-{trace_id}-{caller}-01"}) as http:
        made = await made_machine(http, "traced")
        assert (await final(http, made))["state"] == "succeeded"
        deleted = await http.delete(f"/api/v1/vms/{made.json()['vm']['id']}")
        await final(http, deleted)

    def named(process: str, start: str) -> list[Span]:
        spans = collector.trace(trace_id)
        return [span for span in spans if span.process == process and span.name.startswith(start)]

    wanted = {
        "gateway": "POST at the gateway",
        "vms": "operation vm.create",
        "auth": "vms.vm.created.v1 process",
    }

    def all_there() -> bool:
        tasks = [span.attributes.get("telar.upid", "") for span in named("telar-vms", "task qmclone")]
        told = all(named(f"telar-{process}", start) for process, start in wanted.items())
        return told and bool(named("telar-vms", "vms.vm.created.v1 publish")) and any(tasks)

    await eventually(all_there, 60)
    spans = {span.span_id: span for span in collector.trace(trace_id)}

    def roots(span: Span) -> str:
        """Where the chain of parents ends."""
        while span.parent_id in spans:
            span = spans[span.parent_id]
        return span.parent_id

    ends = [named("telar-vms", "task qmclone")[0], named("telar-auth", "vms.vm.created.v1 process")[0]]
    assert {roots(span) for span in ends} == {caller}
    figures.note(
        "one trace",
        "gateway, vms, RabbitMQ, auth, Proxmox task",
        spans=len(spans),
        processes=len({span.process for span in spans.values()}),
    )


def _targets(cluster: Cluster) -> list[dict[str, Any]]:
    members = cluster.members
    return [{"targets": [f"127.0.0.1:{one.port}"], "labels": {"service": one.service}} for one in members]


@pytest.fixture
def prometheus(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """A Prometheus with the delivered configuration, told the processes' addresses by a file instead of by DNS."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.fail("these proofs need Prometheus: apt-get install prometheus (Debian; no service of it need run)")
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"], job["relabel_configs"]
    job["static_configs"] = _targets(cluster)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(FOLDER / "rules.yml", tmp_path)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen([program, *options, f"--web.listen-address={address}"], stderr=log)
    yield f"http://{address}"
    process.terminate()
    process.wait(30)
    log.close()


async def test_every_query_of_the_dashboards_and_rules_finds_data(
    cluster: Cluster, prometheus: str, figures: Figures, eventually: Eventually
) -> None:
    async with httpx.AsyncClient(base_url=prometheus, trust_env=False) as http, Load(cluster):

        async def asked(expression: str) -> list[Any]:
            answer = await http.get("/api/v1/query", params={"query": expression})
            assert answer.status_code == 200, answer.text
            found: list[Any] = answer.json()["data"]["result"]
            return found

        async def all_scraped() -> bool:
            await asyncio.sleep(0.5)
            try:
                return len(await asked('up{job="telar"} == 1')) == len(cluster.members)
            except httpx.TransportError:
                return False

        await eventually(all_scraped, 60)
        began = time.monotonic()
        empty: list[str] = []

        async def all_found() -> bool:
            await asyncio.sleep(SCRAPE_S)
            expressions = [(place, _without_threshold(expression)) for place, expression in queries()]
            empty[:] = [place for place, expression in expressions if not await asked(expression)]
            return set(empty) <= MAY_BE_EMPTY

        try:
            await eventually(all_found, 120)
        finally:
            print("no data:", json.dumps(empty))  # noqa: T201 - what is to be looked at
        rules = (await http.get("/api/v1/rules")).json()["data"]["groups"][0]["rules"]
    count = len(list(queries()))
    figures.note(
        "dashboards and rules",
        f"{count} queries on a Prometheus that scrapes {len(cluster.members)} processes",
        with_data=count - len(empty),
        all_after_s=time.monotonic() - began,
    )
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
    assert firing <= {"TelarOperationNeedsOperator", "TelarDiskNearlyFull"}, firing


async def test_a_service_without_processes_is_told_of(
    cluster: Cluster, prometheus: str, figures: Figures, eventually: Eventually
) -> None:
    """The queue's consumers are gone, and the gateway says so."""
    async with httpx.AsyncClient(base_url=prometheus, trust_env=False) as http:

        async def unconsumed() -> bool:
            await asyncio.sleep(0.5)
            try:
                answer = await http.get(
                    "/api/v1/query", params={"query": "max by (queue) (telar_bus_queue_consumers) == 0"}
                )
            except httpx.TransportError:
                return False
            return [found["metric"]["queue"] for found in answer.json()["data"]["result"]] == ["containers"]

        try:
            for member in cluster.of("containers"):
                await asyncio.to_thread(member.stop)
            began = time.monotonic()
            await eventually(unconsumed, 60)
            figures.note("consumers = 0", "both processes of containers stopped", seen_after_s=time.monotonic() - began)
            assert await unconsumed(), "seen once, and then no more"
        finally:
            for member in cluster.of("containers"):
                if member.has_ended():
                    member.start()


def _without_threshold(expression: str) -> str:
    """What a rule compares, without the comparison, which is false as long as all is well."""
    return expression.rsplit(" > ", 1)[0].rsplit(" < ", 1)[0].rsplit(" >= ", 1)[0].rsplit(" == ", 1)[0]
