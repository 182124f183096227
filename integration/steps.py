"""The steps of a scenario: each is a cell of the table, and what goes wrong in one doesn't keep the others from being tried."""

import contextlib
import time

from lab import Failure


class Cell:
    """What the table says of a step that went well."""

    text = "yes"


class Steps:
    """One engine of the table; names of checks begin with it and with the step they are in."""

    def __init__(self, lab, table, engine):
        self.lab, self.table, self.engine, self.prefix = lab, table, engine, f"{engine}: "

    def sweep(self):
        """What is done after each step."""

    @contextlib.contextmanager
    def step(self, capability):
        """A row of the table."""
        failures, start, cell = len(self.lab.failed), time.monotonic(), Cell()
        self.prefix = f"{self.engine}: {capability}: "
        try:
            yield cell
            self.sweep()
        except (Failure, OSError, KeyError) as failure:
            self.check("goes on to its end", False, f"{type(failure).__name__}: {failure}")
            with contextlib.suppress(Failure, OSError):
                self.sweep()
        if len(self.lab.failed) > failures:
            cell.text = "FAILED"
        self.table.add(self.engine, capability, cell.text)
        print(f"{self.engine:24} {capability:45} {cell.text:30} {time.monotonic() - start:5.1f} s", flush=True)

    def check(self, name, right, detail=""):
        """Counts an expectation of this step."""
        self.lab.check(self.prefix + name, right, detail)

    def equal(self, name, found, expected):
        """Counts the expectation that two values are equal."""
        self.lab.equal(self.prefix + name, found, expected)

    def none(self, name, lines):
        """Counts the expectation that there is nothing to report."""
        self.check(name, not lines, "\n    ".join(lines))


def refused(action):
    """What a Failure of an action says; nothing if it goes through."""
    try:
        action()
    except Failure as failure:
        return str(failure)
    return None
