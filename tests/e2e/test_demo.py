"""The demonstration is itself a test: every service's main path, through the gateway, on real files."""

import os
import subprocess
import sys

import pytest

from libs.common.testing.stack import require_engine

from .conftest import RunningSuite


@pytest.mark.docker
def test_the_demonstration_succeeds(suite: RunningSuite) -> None:
    require_engine()
    elsewhere = {"TELAR_DEMO_WEB_HOST": suite.host, "TELAR_FETCHER_SOURCE_URI": suite.mongo_uri}
    environment = {
        **os.environ,
        **(elsewhere if suite.containers else {}),
        "TELAR_DEMO_GATEWAY_URL": suite.url,
        "TELAR_DATA_DIR": str(suite.data_dir),
        "TELAR_ADMIN_USERNAME": suite.username,
        "TELAR_ADMIN_PASSWORD": suite.password,
    }
    done = subprocess.run(
        [sys.executable, "-m", "cli.demo"], env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every step succeeded" in done.stdout
