#!/usr/bin/env python3
"""The results of scenarios that try several engines, as one table: capabilities down, engines across.

A scenario adds its cells to a file as it goes; called with such a file this prints it.
"""

import sys
from pathlib import Path


class Table:
    """Cells, in the order in which they came; kept in a file if there is one."""

    def __init__(self, file=None):
        self.file, self.cells = file and Path(file), []

    def add(self, engine, capability, result):
        """One cell."""
        self.cells.append((engine, capability, result))
        if self.file:
            with open(self.file, "a") as out:
                print(engine, capability, result, sep="\t", file=out)

    def text(self):
        """The table, aligned."""
        engines = list(dict.fromkeys(engine for engine, _, _ in self.cells))
        rows = [["", *engines]]
        for capability in self._capabilities():
            found = {engine: result for engine, about, result in self.cells if about == capability}
            rows.append([capability, *(found.get(engine, "–") for engine in engines)])
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n" for row in rows)

    def _capabilities(self):
        """All of them, each below the one that it followed when it was first tried."""
        found, last = [], {}
        for engine, capability, _ in self.cells:
            if capability not in found:
                found.insert(found.index(last[engine]) + 1 if engine in last else len(found), capability)
            last[engine] = capability
        return found


if __name__ == "__main__":
    table = Table()
    for line in Path(sys.argv[1]).read_text().splitlines():
        table.add(*line.split("\t"))
    print(table.text(), end="")
