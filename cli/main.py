"""The `telar` command."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from pydantic import SecretStr, ValidationError
from rich.console import Console

from cli.environment import read_env_file
from libs.common.errors import TelarError

app = typer.Typer(
    help="Telar, a self-hosted private cloud's control plane.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys_app = typer.Typer(help="The gateway's signing keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
documents_app = typer.Typer(help="The fetcher's job store, for backups.", no_args_is_help=True)
app.add_typer(documents_app, name="documents")

DataDir = Annotated[Path, typer.Option(envvar="TELAR_DATA_DIR", help="Where everything is kept.")]
_MAX_PORT = 65_535


@app.callback()
def before_every_command() -> None:
    """Take what `.env` says of options, too: `up` and `keys rotate` are to mean the same data folder."""
    read_env_file()


@app.command()
def up(
    data_dir: DataDir = Path("data"),
    port: Annotated[
        int, typer.Option(envvar="TELAR_PORT", max=_MAX_PORT, help="The gateway's port on 127.0.0.1.")
    ] = 8000,
) -> None:
    """Run the whole suite in this process, on loopback, with everything it needs."""
    from cli import suite  # noqa: PLC0415 - other commands need not load every service

    with _readable_errors():
        uvloop.run(suite.up(_made(data_dir), port))


@app.command()
def serve(
    name: Annotated[str, typer.Argument(help="gateway, auth, images, vms, containers or fetcher.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104 - in a container
    port: Annotated[int, typer.Option(max=_MAX_PORT, help="Port to listen on.")] = 8000,
) -> None:
    """Run one service; everything it needs is in TELAR_* settings."""
    from cli import single  # noqa: PLC0415 - as above

    with _readable_errors():
        uvloop.run(single.serve(name, host, port))


@app.command()
def dev(
    root: Annotated[Path, typer.Argument(help="A checkout of Telar.")] = Path(),
    host: Annotated[str, typer.Option(help="The gateway's address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(max=_MAX_PORT, help="The gateway's port.")] = 8000,
) -> None:
    """Run the gateway and all services from a checkout, started again when files change; settings as for `serve`."""
    from cli import dev as checkout  # noqa: PLC0415 - as above

    with _readable_errors():
        uvloop.run(checkout.run(root.resolve(), host, port))


@app.command()
def migrate(
    names: Annotated[list[str] | None, typer.Argument(help="Services; all installed ones if none is named.")] = None,
) -> None:
    """Bring the services' databases to the newest schema."""
    from cli import single  # noqa: PLC0415 - as above

    with _readable_errors():
        uvloop.run(single.migrate(names or []))


@app.command()
def pvesim(
    data_dir: DataDir = Path("data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(max=_MAX_PORT, help="Port to listen on.")] = 8006,
    token_file: Annotated[
        Path | None, typer.Option(envvar="TELAR_PVESIM_TOKEN_FILE", help="File with the secret of Telar's API token.")
    ] = None,
    time_scale: Annotated[
        float, typer.Option(envvar="TELAR_LAB_TIME_SCALE", help="0.1 makes it ten times faster than a cluster.")
    ] = 1.0,
) -> None:
    """Run the Proxmox VE lab simulator alone."""
    from cli import single  # noqa: PLC0415 - as above

    with _readable_errors():
        token = SecretStr(token_file.read_text().strip()) if token_file else None
        uvloop.run(single.lab(_made(data_dir / "pvesim"), host, port, token, time_scale))


@app.command()
def secrets(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("secrets"),
    lab: Annotated[
        bool, typer.Option("--lab", help="Let telar_vms_clusters name the Proxmox VE lab (profile `lab`).")
    ] = False,
) -> None:
    """Make the files of secrets that docker-compose.yml and the Swarm stack read; what is there is kept."""
    from cli.secrets import write  # noqa: PLC0415 - as above

    with _readable_errors():
        made = write(folder, lab=lab)
    typer.echo(f"{folder}: made {', '.join(made)}" if made else f"{folder}: everything is there already")


@app.command("password")
def give_password(
    name: Annotated[str, typer.Argument(help="The user's name or e-mail address.")],
    data_dir: DataDir = Path("data"),
) -> None:
    """Give a user a new password, asked for here or read from standard input; for who has no administrator left."""
    from cli import password  # noqa: PLC0415 - as above

    asked = typer.prompt("New password", hide_input=True, confirmation_prompt=True) if sys.stdin.isatty() else None
    given = asked or sys.stdin.readline().rstrip("\r\n")
    with _readable_errors():
        uvloop.run(password.give(name, SecretStr(given), data_dir.resolve()))
        typer.echo(f"{name} has a new password; sessions with the old one have ended.")


@keys_app.command("rotate")
def rotate_keys() -> None:
    """Add a signing key and retire the oldest; gateways follow within a second, tokens in use stay good."""
    from gateway.settings import GatewaySettings  # noqa: PLC0415 - as above
    from gateway.tokens import ACTIVE_AFTER_S, KeyRing  # noqa: PLC0415 - as above
    from libs.common.settings import CommonSettings  # noqa: PLC0415 - as above

    with _readable_errors():
        path = GatewaySettings(common=CommonSettings(embedded=True)).keys_path().resolve()
        if not path.exists():
            raise SystemExit(f"{path} does not exist: name the data folder of a suite that has run, by TELAR_DATA_DIR")
        kid = KeyRing(path).rotate()
        typer.echo(f"Key {kid} is published in {path} and signs from {ACTIVE_AFTER_S:.0f} s on.")


@documents_app.command("save")
def save_documents() -> None:
    """Write every document of the fetcher's job store to standard output."""
    from cli.documents import save  # noqa: PLC0415 - as above

    with _readable_errors():
        uri, database = _job_store()
        typer.echo(f"{save(uri, database, sys.stdout.buffer)} documents", err=True)


@documents_app.command("load")
def load_documents() -> None:
    """Put documents from standard input into an empty job store, after `telar migrate fetcher`."""
    from cli.documents import load  # noqa: PLC0415 - as above

    with _readable_errors():
        uri, database = _job_store()
        typer.echo(f"{load(uri, database, sys.stdin.buffer)} documents", err=True)


def _job_store() -> tuple[str, str]:
    """The URI and database name in the fetcher's settings."""
    from services.fetcher.settings import FetcherSettings  # noqa: PLC0415 - as above

    settings = FetcherSettings()
    return settings.mongo_uri, settings.mongo_database


def _made(folder: Path) -> Path:
    """The folder's absolute path, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Tell wrong settings, and what is away or refused, in a few lines instead of a traceback."""
    try:
        yield
    except ValidationError as error:
        console = Console(stderr=True)
        console.print("[red]The settings are not usable:[/]")
        for item in error.errors():
            name = "_".join(map(str, item["loc"])) or error.title
            console.print(f"  {name}: {item['msg']}", markup=False)
        sys.exit(2)
    except TelarError as error:
        raise SystemExit(f"{error.title}: {error.__cause__ or error.detail}") from error
    except OSError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    app()
