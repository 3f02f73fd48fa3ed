"""Run the demonstration; ends with 0 only if every step succeeded."""

import sys

from cli.demo.session import DemoFailed
from cli.demo.steps import run
from cli.environment import read_env_file

if __name__ == "__main__":
    read_env_file()
    try:
        run()
    except DemoFailed as failed:
        sys.exit(f"The demonstration stopped: {failed}")
