"""What the long proofs have measured: rows of the reliability table."""

import os


class Figures:
    """Rows of a fault, what was done, and what was seen."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def note(self, fault: str, done: str, **seen: object) -> None:
        """Add a row; `seen` is shown as `name value`, underscores as spaces."""
        told = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in seen.items())
        self.rows.append((fault, done, told))

    def table(self) -> str:
        rows = "".join(f"| {' | '.join(row)} |\n" for row in self.rows)
        machine = f"{os.cpu_count()} processors, load {os.getloadavg()[1]:.1f} over the last five minutes"
        return f"| fault | done | seen |\n|---|---|---|\n{rows}\n{machine}\n"


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
