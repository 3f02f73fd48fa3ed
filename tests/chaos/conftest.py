"""Figures of the long proofs: every test may note some, the table is printed and written when all have run."""

from pathlib import Path

import pytest

from tests.chaos.figures import Figures

RESULTS = Path("bench/reliability.md")
_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = Figures()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    return pytestconfig.stash[_FIGURES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    noted = config.stash[_FIGURES]
    if not noted.rows:
        return
    terminalreporter.write_sep("=", "reliability")
    terminalreporter.write_line(noted.table())
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(noted.table())
