#!/usr/bin/env python3
"""The one table: engines down, what matters of them across. Each cell is the outcome of steps that ran against the real engine.

  integration/summary.py target/engines.table            prints it, as Markdown; status 1 if a cell failed or did not run
  integration/summary.py --readme README.md              status 1 if the table there has other rows, columns or holes

A scenario adds its cells through `table.Table`. A row is declared here, and nowhere else: under which name the scenario adds its cells, and
which of its steps make a cell of the row.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("pull or find", "run", "same file tree", "registry down", "survives restarts", "thin image", "first output (ordinary)")
# Of these the result of the one step is shown; of the others only that their steps went well.
FIGURES = ("thin image", "first output (ordinary)")
NONE = "–"


class Row(NamedTuple):
    """An engine: `cells` is the name that its scenario gives it, but for what follows a dot of a version; `steps` are those of each column."""

    title: str
    cells: str
    steps: dict


def _containerd(pulls):
    return {
        "pull or find": [*pulls, "cvmfs-snapshotter pull", "CRI"],
        "run": ["run, exec"],
        "same file tree": ["1, 12, 60 layers; shared ones once"],
        "registry down": ["registry down: by tag, by digest, run"],
        "survives restarts": ["snapshotter: kill -9, SIGTERM", "containerd: kill -9", "cvmfs-client: kill -9, mounted again"],
        "thin image": ["thin image, no registry"],
        "first output (ordinary)": ["seconds to first output"],
    }


DOCKER = {
    "pull or find": ["pull"],
    "run": ["run, exec"],
    "same file tree": ["1, 12, 60 layers; shared ones once"],
    "registry down": ["registry down: by tag, by digest, run"],
    "survives restarts": ["snapshotter: kill -9, SIGTERM", "dockerd: SIGTERM, kill -9"],
    "thin image": ["thin image, no registry"],
    "first output (ordinary)": ["seconds to first output"],
}
DOCKER_26 = DOCKER | {"registry down": ["registry-mirrors, no network"]}
PLUGIN = {
    "pull or find": ["thin image: pull, run"],
    "run": ["thin image: pull, run", "ordinary images"],
    "same file tree": ["thin image: pull, run"],
    "registry down": ["thin image: pull, run", "save, load"],
    "survives restarts": ["plugin: kill -9, SIGTERM", "dockerd, both: SIGTERM, kill -9"],
    "thin image": ["thin image: pull, run"],
    "first output (ordinary)": ["seconds to first output (Python)"],
}
APPTAINER = {
    "pull or find": ["exec: words and environment as Docker's"],
    "run": ["run: words and environment as Docker's"],
    "same file tree": ["correct file tree"],
    "registry down": ["works with the registry down"],
    "survives restarts": ["cvmfs-client: kill -9, mounted again", "tag is moved while it runs"],
    "first output (ordinary)": ["seconds to first output"],
}
RUNNER = {
    "pull or find": ["words and environment of the config"],
    "run": ["words and environment of the config", "users, rights, writing"],
    "same file tree": ["correct file tree"],
    "registry down": ["works with the registry down"],
    "survives restarts": ["cvmfs-client: kill -9, mounted again"],
    "first output (ordinary)": ["seconds to first output"],
}
PODMAN = {
    "pull or find": ["found by name in both stores"],
    "run": ["run: words and environment as after a pull", "user, working directory, options"],
    "same file tree": ["correct file tree"],
    "registry down": ["run, registry down", "pull by name and digest, registry down"],
    "survives restarts": ["a running service sees stores change", "store is removed under a container", "cvmfs-client: kill -9, mounted again"],
    "first output (ordinary)": ["seconds to first output"],
}
ROWS = (
    Row("containerd 1.6", "containerd 1.6", _containerd([])),
    Row("containerd 1.7", "containerd 1.7", _containerd([])),
    Row("containerd 2", "containerd 2", _containerd(["ctr images pull"])),
    Row("Docker 26, containerd store", "Docker 26", DOCKER_26),
    Row("Docker 28, containerd store", "Docker 28", DOCKER),
    Row("Docker 20.10, graph driver", "Docker 20.10 + plugin", PLUGIN),
    Row("Docker 26, graph driver", "Docker 26 + plugin", PLUGIN),
    Row("Podman 4, root", "podman 4 root", PODMAN),
    Row("Podman 4, user", "podman 4 user", PODMAN),
    Row("Podman 5, root", "podman 5 root", PODMAN),
    Row("Podman 5, user", "podman 5 user", PODMAN),
    Row("Apptainer, root", "apptainer root", APPTAINER),
    Row("Apptainer, user", "apptainer user", APPTAINER),
    Row("runc, root", "runc root", RUNNER),
    Row("runc, user", "runc user", RUNNER),
    Row("bubblewrap, root", "bwrap root", RUNNER),
    Row("bubblewrap, user", "bwrap user", RUNNER),
    Row("overlay as of systemd-nspawn", "overlay, pivot_root", RUNNER),
)


def summary(cells, rows=ROWS):
    """({row: its cells}, what is missing or failed) of cells as scenarios add them: (engine, step, result)."""
    text, wrong = {}, []
    for row in rows:
        found = {step: result for engine, step, result in cells if engine == row.cells or engine.startswith(f"{row.cells}.")}
        text[row.title] = []
        for column in COLUMNS:
            steps = row.steps.get(column, [])
            results = [found.get(step, "not run") for step in steps]
            bad = next((result for result in results if result in ("FAILED", "not run")), None)
            if bad:
                wrong += [f"{row.title}: {step}: {result}" for step, result in zip(steps, results) if result == bad]
            text[row.title].append(bad or (NONE if not steps else results[-1] if column in FIGURES else "yes"))
    return text, wrong


def markdown(text):
    """The table, aligned for who reads it in a terminal."""
    lines = [["engine", *COLUMNS], *([title, *cells] for title, cells in text.items())]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |\n" for line in lines)


def parse(document):
    """({row: its cells}, columns) of the table in a document whose first column is `engine`; nothing if there is none."""
    lines = document.splitlines()
    start = next((number for number, line in enumerate(lines) if re.match(r"\| *engine *\|", line)), len(lines))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    rows = {line[0]: line[1:] for line in table[2:]}
    return rows, tuple(table[0][1:]) if table else ()


def unlike(document, rows=ROWS):
    """How the table in a document differs in shape from the one that is printed, in few lines."""
    found, columns = parse(document)
    wrong = [] if columns == COLUMNS else [f"its columns are {columns}, not {COLUMNS}"]
    titles = [row.title for row in rows]
    wrong += [] if list(found) == titles else [f"its rows are {list(found)}, not {titles}"]
    for row in rows:
        for column, cell in zip(COLUMNS, found.get(row.title, [])):
            filled = cell == NONE if column not in row.steps else cell == "yes" or column in FIGURES and re.search(r"\d", cell)
            wrong += [] if filled else [f"{row.title}, {column}: {cell!r}"]
    return wrong


def main(words):
    if len(words) == 2 and words[0] == "--readme":
        wrong = unlike(Path(words[1]).read_text())
        text = f"the table in {words[1]} is not the one that `make test-engines` prints"
    elif len(words) == 1:
        cells = [tuple(line.split("\t")) for line in Path(words[0]).read_text().splitlines()]
        text, wrong = summary(cells)
        print(markdown(text), end="")
        text = "cells of the table that have no result"
    else:
        sys.exit(__doc__)
    if wrong:
        sys.exit(f"{text}:\n  " + "\n  ".join(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
