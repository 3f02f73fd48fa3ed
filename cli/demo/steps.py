"""The steps of the demonstration, in order."""

import hashlib
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient
from rich.console import Console

from cli.demo.material import bootable_iso, picture_server, site_zip
from cli.demo.session import Caller, DemoFailed, Listener, administrator, data_dir, gateway_url

_console = Console(highlight=False, soft_wrap=True)
_PICTURES = 8


def run() -> None:
    """Walk all steps; raises DemoFailed at the first that does not succeed."""
    started = time.monotonic()
    _step("Log in as administrator and make a client")
    admin = Caller(*administrator())
    name, password = f"demo-{secrets.token_hex(3)}", secrets.token_urlsafe(12)
    body = {"username": name, "email": f"{name}@example.org", "password": password}
    _say(f"made {admin.call('POST', '/api/v1/users/', json=body)['username']}")
    client = Caller(name, password)
    events = Listener(client)
    made = [
        _image(client, events),
        _virtual_machine(client, events),
        _stack(client, events),
        _pictures(client, events),
    ]
    _usage(client, events)
    _remove(admin, client, made)
    _console.print(f"[bold green]Every step succeeded[/] in {time.monotonic() - started:.1f} s")


def _image(client: Caller, events: Listener) -> str:
    _step("Upload a bootable ISO, list it, download it again")
    with tempfile.TemporaryDirectory(prefix="telar-demo-") as folder:
        iso = bootable_iso(Path(folder))
        digest = hashlib.sha256(iso.read_bytes()).hexdigest()
        fields = {"name": iso.stem, "os_type": "linux", "version": "1", "architecture": "x86_64", "description": "demo"}
        with iso.open("rb") as file:
            answer = client.call("POST", "/api/v1/images/upload", data=fields, files={"file": (iso.name, file)})
    image = answer["image"]
    _say(f"{iso.name}: {image['size']}, {image['status']}, sha256 {image['sha256'][:16]}…")
    listed = client.call("GET", "/api/v1/images", params={"name": iso.stem})["items"]
    if image["id"] not in [one["id"] for one in listed]:
        raise DemoFailed("the image is not in the list")
    content = client.call("GET", f"/api/v1/images/{image['id']}/download").content
    if hashlib.sha256(content).hexdigest() != digest or image["sha256"] != digest:
        raise DemoFailed("the downloaded image differs from the uploaded one")
    _say(f"downloaded {len(content)} bytes, the same digest")
    events.wait_for("images.image.activated.v1")
    return f"/api/v1/images/{image['id']}"


def _virtual_machine(client: Caller, events: Listener) -> str:
    _step("Create a virtual machine from a template and see it run")
    templates = client.call("GET", "/api/v1/templates")["items"]
    _say("templates: " + ", ".join(template["name"] for template in templates))
    body = {
        "name": f"demo-{secrets.token_hex(3)}",
        "os_type": "ubuntu",
        "cores": 2,
        "memory_mib": 2048,
        "disk_gib": 40,
        "start": True,
    }
    answer = client.call("POST", "/api/v1/vms", json=body)
    vm = answer["vm"]
    client.finished(answer, _say)
    vm = client.call("GET", f"/api/v1/vms/{vm['id']}")
    if vm["state"] != "running":
        raise DemoFailed(f"the machine is {vm['state']}")
    _say(f"{vm['name']} runs on node {vm['node']} as VMID {vm['vmid']}")
    events.wait_for("vms.vm.created.v1")
    return f"/api/v1/vms/{vm['id']}"


def _stack(client: Caller, events: Listener) -> str:
    _step("Deploy a static site from a ZIP and read it over HTTP")
    text = f"Hello from Telar {secrets.token_hex(3)}"
    fields = {"name": f"demo-{secrets.token_hex(3)}", "service_types": "static"}
    files = {"zip_file": ("site.zip", site_zip(text), "application/zip")}
    answer = client.call("POST", "/api/v1/stacks", data=fields, files=files)
    stack = answer["stack"]
    client.finished(answer, _say)
    stack = client.call("GET", f"/api/v1/stacks/{stack['id']}")
    url = stack["urls"][0]
    page = httpx.get(url, timeout=10, trust_env=False)
    if text not in page.text:
        raise DemoFailed(f"{url} answers something else: {page.text[:200]}")
    _say(f"{url} answers: {text}")
    events.wait_for("containers.stack.created.v1")
    return f"/api/v1/stacks/{stack['id']}"


def _pictures(client: Caller, events: Listener) -> str:
    _step("Fetch the pictures that a MongoDB collection points to")
    database, collection = "demo", f"pages_{secrets.token_hex(3)}"
    with picture_server(_PICTURES) as urls:
        with MongoClient[dict[str, Any]](_source_uri()) as mongo:
            mongo[database][collection].insert_many([{"_id": f"page-{n}", "image": url} for n, url in enumerate(urls)])
        path = f"/api/v1/download/collection/{database}/{collection}"
        job_id = client.call("POST", path, json={"search_field": "image"})["job_id"]
        job = _finished_job(client, job_id)
    counts = job["items"]
    _say(f"job {job['status']}: {counts}")
    if counts.get("completed") != _PICTURES:
        raise DemoFailed(f"not all pictures were fetched: {job}")
    folder = data_dir() / "fetcher" / database / collection
    stored = sorted(folder.glob("*/original/img_*"))
    if stored:
        _say(f"{len(stored)} files, such as {stored[0].relative_to(data_dir())}")
    events.wait_for("fetcher.job.completed.v1")
    return f"/api/v1/jobs/{job_id}"


def _finished_job(client: Caller, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.call("GET", f"/api/v1/jobs/{job_id}")
        if job["status"] in ("completed", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise DemoFailed(f"job {job_id} did not end within a minute")


def _usage(client: Caller, events: Listener) -> None:
    _step("See the events, and the use of each quota in auth")
    _say(", ".join(dict.fromkeys(events.types)))
    wanted = {"image", "vm", "stack", "fetch_job"}
    deadline = time.monotonic() + 15
    while True:
        usage = client.call("GET", "/api/v1/users/me/usage")
        if wanted <= {one["type"] for one in usage["resources"]}:
            break
        if time.monotonic() > deadline:
            raise DemoFailed(f"auth does not know all of it: {usage['resources']}")
        time.sleep(0.1)
    _say(", ".join(f"{name} {amount}" for name, amount in usage["used"].items() if amount))


def _remove(admin: Caller, client: Caller, made: list[str]) -> None:
    """Delete everything; the user can go only when nothing is left (the fetched pictures stay in their folder)."""
    _step("Delete all of it, and the client at last")
    for path in made:
        answer = client.call("DELETE", path)
        if isinstance(answer, dict) and answer.get("kind"):
            client.finished(answer, lambda _line: None)
        _say(f"deleted {path}")
    deadline = time.monotonic() + 15
    while client.call("GET", "/api/v1/users/me/usage")["resources"]:
        if time.monotonic() > deadline:
            raise DemoFailed("auth still knows resources of the client")
        time.sleep(0.1)
    admin.call("DELETE", f"/api/v1/users/{client.user['id']}")
    _say("nothing is left that the client owned, so its account could go too")


def _source_uri() -> str:
    """Where the documents are: the operator's setting, or the embedded suite's server."""
    given = os.environ.get("TELAR_FETCHER_SOURCE_URI")
    port = data_dir() / "mongo" / "port"
    if given:
        return given
    if port.exists():
        return f"mongodb://127.0.0.1:{port.read_text().strip()}"
    raise DemoFailed(f"set TELAR_FETCHER_SOURCE_URI: there is no embedded MongoDB of {gateway_url()} here")


def _step(text: str) -> None:
    _console.print(f"[bold]• {text}[/]")


def _say(text: str) -> None:
    _console.print(f"    {text}", style="dim")
