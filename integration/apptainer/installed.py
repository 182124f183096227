"""Apptainer as it is installed, in the scenario's mount namespace only, and users who call it."""

import os
import subprocess
from pathlib import Path

from lab import Failure

USER, USER_ID = "visitor", 20_000
HOMES = {0: "/home/visitor-root", USER_ID: "/home/visitor"}  # for root one of its own, for Apptainer leaves files there
MAPPED = 200_000  # the first of the IDs that the user may map

# How it is called. Root has to give up a right that root lacks on some machines, or Apptainer refuses to start.
WAYS = {"root": ["--drop-caps", "CAP_SYS_RESOURCE"], "root --userns": ["--userns"], "user": []}


class Apptainer:
    """Its files and a table of users lie over the machine's, where a package would install them."""

    def __init__(self, lab, engines):
        self.lab, files = lab, Path(engines).resolve() / "apptainer"
        if not files.exists():
            raise Failure(f"{files} is missing: integration/engines brings it")
        configuration = lab.path("apptainer/etc")
        lab.run("cp", "-a", files / "etc/apptainer", configuration)
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[2] != "0"]
        ours = [f"{name}:x:{user}:{user}::{HOMES[user]}:/bin/sh" for name, user in (("root", 0), (USER, USER_ID))]
        (configuration / "passwd").write_text("\n".join([*ours, *others, ""]))
        (configuration / "group").write_text(Path("/etc/group").read_text() + f"{USER}:x:{USER_ID}:\n")
        for name in ("subuid", "subgid"):
            (configuration / name).write_text(f"{USER}:{MAPPED}:65536\n")
        (configuration / "hosts").write_text("127.0.0.1 localhost\n")
        (configuration / "resolv.conf").write_text("# no server\n")
        (configuration / "containers/registries.d").mkdir(parents=True)
        os.setxattr(configuration / "containers", "trusted.overlay.opaque", b"y")  # what other engines have there is not for docker://
        lab.over("/etc", configuration)
        lab.over("/usr", files / "usr")
        state = lab.path("apptainer/state")
        (state / "mnt/session").mkdir(parents=True)
        lab.place("/var/lib/apptainer", state)
        for user, home in HOMES.items():
            files = lab.path(f"apptainer{home}")
            files.chmod(0o700)
            os.chown(files, user, user)
            lab.place(home, files)
        self.configuration = Path("/etc/apptainer/apptainer.conf")

    def command(self, way, verb, *words, environment=()):
        """A command line, with nothing in its environment that isn't said."""
        user = USER_ID if way == "user" else 0
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        basis = [f"HOME={HOMES[user]}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb"]
        options = WAYS[way] if verb in ("exec", "run", "instance start") else []
        command = ["env", "-i", "-C", HOMES[user], *become, "env", *basis, *environment, "apptainer", *verb.split(), *options, *words]
        return [str(word) for word in command]

    def __call__(self, way, verb, *words, environment=(), ok=(0,)):
        """Runs it to its end; `.stdout` is bytes, `.stderr` text."""
        command = self.command(way, verb, *words, environment=environment)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        done.stderr = done.stderr.decode(errors="replace")
        if ok is not None and done.returncode not in ok:
            raise Failure(f"status {done.returncode} from apptainer {verb} {' '.join(map(str, words))[:300]} as {way}: {done.stderr.strip()[-1000:]}")
        return done
