"""What `.env` says, for those who look into the environment alone: options, and the demonstration."""

import os

from dotenv import dotenv_values


def read_env_file() -> None:
    """Put TELAR's variables of `.env` into the environment, where they are not there already."""
    for name, value in dotenv_values(".env").items():
        if name.startswith("TELAR_") and value:
            os.environ.setdefault(name, value)
