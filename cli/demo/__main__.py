"""Run the demonstration; ends with 0 only if every step succeeded."""

import sys

from cli.demo.session import DemoFailed
from cli.demo.steps import run

if __name__ == "__main__":
    try:
        run()
    except DemoFailed as failed:
        sys.exit(f"The demonstration stopped: {failed}")
