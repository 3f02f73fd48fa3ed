"""The PostgreSQL that `telar up` brings along, found again after what may have ended it."""

import os
from pathlib import Path

import psycopg
import pytest

from cli.backends import EmbeddedPostgres, running_postgres
from libs.common.errors import Unavailable


def answer(url: str | None) -> object:
    assert url is not None
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT 6 * 7").fetchone()
    return row and row[0]


async def test_a_server_whose_number_is_another_processs_after_a_power_cut_is_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    server = EmbeddedPostgres(folder)
    await server.start(("auth",))
    told = (folder / "postmaster.pid").read_text().splitlines()
    assert answer(running_postgres(folder, "auth")) == 42
    await server.stop()
    assert running_postgres(folder, "auth") is None
    (folder / "postmaster.pid").write_text("\n".join([str(os.getpid()), *told[1:]]) + "\n")
    assert running_postgres(folder, "auth") is None
    again = EmbeddedPostgres(folder)
    await again.start(("auth",))
    try:
        assert answer(again.url("auth")) == answer(running_postgres(folder, "auth")) == 42
    finally:
        await again.stop()


async def test_a_server_that_does_not_start_says_where_its_log_is(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    server = EmbeddedPostgres(folder)
    await server.start(("auth",))
    await server.stop()
    (folder / "postgresql.conf").write_text("no such setting = on\n")
    with pytest.raises(Unavailable, match="log tells why"):
        await EmbeddedPostgres(folder).start(("auth",))
