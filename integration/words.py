"""Images that print what they are started with, and configs that are easily passed on wrongly.

One program in them prints its words and its environment, each ended by NUL. `CASES` is the table: for each image its entry point, command and
environment, and what a user adds. What must arrive isn't written down: an engine that reads configs by itself is asked for it.
"""

import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import images
from layers import Stack
from lab import Failure

PROGRAM = """\
#include <stdio.h>

extern char **environ;

int main(int count, char **words) {
    printf("%d%c", count, 0);
    for (int i = 0; i < count; i++) printf("%s%c", words[i], 0);
    for (char **variable = environ; *variable; variable++) printf("%s%c", *variable, 0);
    return 0;
}
"""

# Each is one word, or the value of one variable.
HOSTILE = [
    *("", " ", "one two", " around ", "\t", "new\nline", "\n", "at the end\n", "carriage\rreturn", "\x01\x7f", "\u00fcml\u00e4ut \U0001f433"),
    *("'", "it's", '"', 'say "no"', "''\"\"''", "`id`", "$(id)", "$HOME", "${HOME}", "$", "$$", "\\", "\\\\", "back\\slash\\n", "\\$HOME", "\\'"),
    *("-", "--", "-n", "-x", "--help", "*", "?", "[a-z]", "~", "~root", "{a,b}", "a;b", "a&&b", "a|b", "a>b", "a<b", "#none", "!!", "%s%n"),
    *("=", "a=b", "(a)", "))", "EOF", "x" * 100_000),
]
PATH, GREETING = "PATH=/bin", f"GREETING={images.GREETING}"
ENTRYPOINT_SCRIPT = """exec words "$GREETING" 'it'"'"'s' `echo two words` $((1+1)) "$0" "$@\""""

# Names that shells use themselves, and some that are none for them.
SHELL_NAMES = [
    *("CDPATH", "ENV", "HISTFILE", "IFS", "OPTIND", "PPID", "PS1", "PS2", "PS4", "SHELLOPTS", "BASH_ENV", "UID", "EUID", "GID", "LANG", "_"),
    *("HOME", "LD_LIBRARY_PATH", "PWD", "SHELL", "TERM", "USER", "a.b", "1st", "a-b"),
]


class Case(NamedTuple):
    """A config, and what a user adds in each of several starts."""

    config: dict
    starts: list
    base: str = "busybox"


def _variables(values):
    return [f"V{number}={value}" for number, value in enumerate(values)]


CASES = {
    "entrypoint-and-cmd": Case(
        {"Env": [PATH], "Entrypoint": ["/bin/words", *HOSTILE], "Cmd": [*reversed(HOSTILE)]},
        [[], HOSTILE, [""], ["-x", "--help"], ["--"]],
    ),
    "entrypoint": Case({"Env": [PATH], "Entrypoint": ["words", "-e"]}, [[], HOSTILE]),
    "cmd": Case({"Env": [PATH], "Cmd": ["words", *HOSTILE]}, [[], ["/bin/words", *HOSTILE], ["words"]]),
    "shell-entrypoint": Case(
        {"Env": [PATH, GREETING], "Entrypoint": ["/bin/sh", "-c", ENTRYPOINT_SCRIPT], "Cmd": HOSTILE},
        [[], ["a", "b"], HOSTILE],
    ),
    "shell-cmd": Case({"Env": [PATH, GREETING], "Cmd": ["/bin/sh", "-c", 'exec words "$GREETING" $GREETING']}, [[], ["words", "a b"]]),
    "neither": Case({"Env": [PATH]}, [["words", *HOSTILE]]),
    "environment": Case({"Env": [PATH, *_variables(HOSTILE)], "Entrypoint": ["words"]}, [[], ["a", "b"]]),
    "odd-variables": Case(
        {
            "Env": ["TWICE=1", PATH, "TWICE=2=3", "EMPTY=", "lower=case", "_UNDER=1", "UNSET", "TAKEN=1", "TAKEN", *_variables("xyz" * 300)],
            "Entrypoint": ["words"],
        },
        [[]],
    ),
    "shell-names": Case({"Env": [PATH, *(f"{name}=:it's" for name in SHELL_NAMES)], "Entrypoint": ["words"]}, [[], ["a", "b"]]),
    "search-path": Case({"Env": ["PATH=/opt/it's mine/$HOME:/bin"], "Entrypoint": ["tool"]}, [[], HOSTILE]),
    "no-search-path": Case({"Env": ["A=1"], "Entrypoint": ["/bin/words"]}, [[]]),
    "no-environment": Case({"Entrypoint": ["/bin/words"]}, [[]]),
    "no-shell": Case(
        {"Env": ["PATH=/", *_variables(HOSTILE)], "Entrypoint": ["/words", *HOSTILE], "Cmd": ["c"]},
        [[], HOSTILE],
        base="empty",
    ),
}


class Started(NamedTuple):
    """What the program printed."""

    words: list
    environment: dict


def started(output):
    """Reads what the program printed, which is bytes."""
    fields = output.decode(errors="surrogateescape").split("\0")
    if fields.pop() or not fields[0].isdigit():
        raise Failure(f"the program that prints its words was not what ran: {output[:300]!r}")
    count = int(fields[0])
    return Started(fields[1 : count + 1], dict(variable.partition("=")[::2] for variable in fields[count + 1 :]))


def unlike(expected, found):
    """How two lists of words or two environments differ, in few lines; empty if they don't."""
    if isinstance(expected, list):
        expected, found = (dict(enumerate(words)) for words in (expected, found))
    short = lambda words, key: repr(words[key])[:80] if key in words else "nothing"
    keys = [key for key in dict.fromkeys([*expected, *found]) if expected.get(key) != found.get(key)]
    return [f"{key}: expected {short(expected, key)}, found {short(found, key)}" for key in keys[:20]]


class Words:
    """The layouts of the images of the table, in directories of their own; all of one base share its layers."""

    def __init__(self, home, engines):
        self.stack = Stack(home, engines)
        key = [Path(__file__).read_text(), str(self.stack.directory)]
        self.directory = images.cached(home, "words", key, self._write)

    def layout(self, name):
        """The directory of a layout."""
        return self.directory / name

    def _write(self, directory):
        directory.mkdir()
        program, source = directory / "program", directory / "program.c"
        source.write_text(PROGRAM)
        done = subprocess.run(["cc", "-static", "-O1", "-s", "-o", program, source], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failure(f"cc can't make a static program: {done.stderr}")
        for name, case in CASES.items():
            layout = images.Layout(directory / name)
            if case.base == "busybox":
                layout.begin_with(self.stack.layout("one"))
            with layout.layer() as layer:
                if case.base == "busybox":
                    layer.directory("bin")
                    layer.directory("opt/it's mine/$HOME")
                    layer.add("opt/it's mine/$HOME/tool", tarfile.SYMTYPE, link="/bin/words")
                layer.add("words" if case.base == "empty" else "bin/words", content=program.read_bytes(), mode=0o755)
            layout.finish("1", **case.config)
