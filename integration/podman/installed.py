"""Podman as it is installed, of two releases, in the scenario's mount namespace only: for root and for an ordinary user."""

import os
import subprocess
from pathlib import Path

from lab import Failure, configured

HERE = Path(__file__).resolve().parent
RELEASES, WAYS = ("4", "5"), ("root", "user")
USER, USER_ID = "visitor", 20_000
MAPPED = 200_000  # the first of the IDs that the user may map
STORE, FQRN = Path("/var/lib/thin-image/store"), "images.example.org"
OPT = Path("/opt/cvmfs")  # where the user finds our client and the key of the repository

# What the machines of tests need and others don't: they have no systemd, and root may not raise limits.
CONTAINERS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["{programs}/conmon"]
helper_binaries_dir = ["{programs}"]
static_dir = "{graph}/libpod"
tmp_dir = "{tmp}"

[containers]
netns = "none"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
"""

# The same Podman without anything of ours, to compare with. The images have an owner that no ordinary user can map.
PLAIN = """\
[storage]
driver = "overlay"
graphroot = "{home}/plain"
rootless_storage_path = "{home}/plain"  # for ordinary users the one above does not count with Podman 4
runroot = "{home}/plain-run"

[storage.options]
ignore_chown_errors = "{ignore}"
"""


class Machine:
    """Files and a table of users over those of the machine, and the places where Podman keeps things."""

    def __init__(self, lab):
        self.lab, etc = lab, lab.path("machine/etc")
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[0] != USER]
        (etc / "passwd").write_text("\n".join([*others, f"{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh", ""]))
        (etc / "group").write_text(Path("/etc/group").read_text() + f"{USER}:x:{USER_ID}:\n")
        for name in ("subuid", "subgid"):
            (etc / name).write_text(f"{USER}:{MAPPED}:65536\n")
        (etc / "containers/registries.conf.d").mkdir(parents=True)
        os.setxattr(etc / "containers", "trusted.overlay.opaque", b"y")  # what other engines have there is not for this one
        (etc / "containers/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        lab.over("/etc", etc)
        self.containers = Path("/etc/containers")
        for place in ("/var/lib/containers", "/run/containers", "/run/libpod", "/var/lib/thin-image", "/var/tmp", OPT):
            lab.place(place, lab.path(f"machine{place}"))
        os.chmod("/var/tmp", 0o1777)
        # Root has a home of its own, for Podman leaves files there.
        lab.place(f"/home/{USER}", lab.path("machine/home"))
        lab.place(f"/home/{USER}-root", lab.path("machine/home-root"))
        lab.place(f"/run/user/{USER_ID}", lab.path("machine/run-user"))
        for path in (f"/home/{USER}", f"/run/user/{USER_ID}"):
            os.chown(path, USER_ID, USER_ID)
            os.chmod(path, 0o700)
        os.chmod("/dev/fuse", 0o666)


class Podman:
    """One release of Podman, called by root or by an ordinary user; with an installation of its own."""

    def __init__(self, lab, engines, release, way):
        self.lab, self.release, self.way = lab, release, way
        files = Path(engines).resolve() / f"podman{release}"
        if not files.exists():
            raise Failure(f"{files} is missing: integration/engines brings it")
        self.place = Path(f"/opt/podman{release}")
        if not (self.place / "programs").exists():
            lab.place(self.place, files)
        root, self.user = way == "root", 0 if way == "root" else USER_ID
        self.home = Path(f"/home/{USER}-root" if root else f"/home/{USER}") / release
        self.runtime = Path("/run/libpod" if root else f"/run/user/{USER_ID}") / release
        configuration = self.home / ".config/containers"
        for path in (self.runtime, configuration):
            path.mkdir(parents=True)
        ignore = str(not root).lower()
        (configuration / "plain.conf").write_text(PLAIN.format(home=self.home, ignore=ignore))
        if root:
            self.graph, self.storage = f"/var/lib/containers/{release}", Path("/etc/containers/storage.conf")
            self.storage_text = configured(
                HERE / "storage.conf",
                {"/var/lib/containers/storage": self.graph, "/run/containers/storage": f"/run/containers/{release}"},
            )
        else:
            self.graph, self.storage = str(self.home / ".local/share/containers/storage"), configuration / "storage.conf"
            self.storage_text = (HERE / "storage-user.conf").read_text()
        self.storage.write_text(self.storage_text)
        for name, graph in (("containers", self.graph), ("plain-containers", f"{self.home}/plain")):
            text = CONTAINERS.format(programs=self.place / "programs", graph=graph, tmp=self.runtime / name)
            (configuration / f"{name}.conf").write_text(text)
        for path in (self.home, self.runtime) if not root else ():
            lab.run("chown", "-R", f"{USER_ID}:{USER_ID}", path)
        self.version = self("--version").stdout.split()[-1]

    def switch(self):
        """Makes this the Podman that is installed: for root there is one configuration file."""
        self.storage.write_text(self.storage_text)

    def unshare(self, *words):
        """Runs a program in the namespaces of an ordinary user's containers; that must not want the stores, which may not be there yet."""
        words = ["CONTAINERS_STORAGE_CONF=/dev/null", "STORAGE_DRIVER=overlay", "podman", "unshare", *words]
        return self.lab.run(*self.become(*words))

    def become(self, *words, plain=False):
        """The command line of a program as the same user, with nothing in its environment that isn't said."""
        become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        variables = [f"HOME={self.home}", f"PATH={self.place}/programs:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb", "TMPDIR=/var/tmp"]
        configuration = self.home / ".config/containers"
        # What Podman 4 notes of a store counts for all that are used with the same notes, so these are apart as well.
        settings = configuration / ("plain-containers.conf" if plain else "containers.conf")
        variables += [f"XDG_RUNTIME_DIR={self.runtime}", f"CONTAINERS_CONF={settings}", "PODMAN_IGNORE_CGROUPSV1_WARNING=1"]
        variables += [f"CONTAINERS_STORAGE_CONF={configuration}/plain.conf"] if plain else []
        return [str(word) for word in ["env", "-i", "-C", self.home, *become, "env", *variables, *words]]

    def __call__(self, *words, ok=(0,), plain=False, text=True):
        """Runs it to its end; `plain`: without anything of ours. `.stdout` is text, unless bytes are asked for."""
        done = subprocess.run(self.become("podman", *words, plain=plain), stdin=subprocess.DEVNULL, capture_output=True)
        done.stderr = done.stderr.decode(errors="replace")
        done.stdout = done.stdout.decode(errors="surrogateescape") if text else done.stdout
        if ok is not None and done.returncode not in ok:
            what = " ".join(map(str, words))[:300]
            raise Failure(f"status {done.returncode} from podman {what} as {self.way}: {done.stderr.strip()[-1500:]}")
        return done
