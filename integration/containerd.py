"""A worker node with a real containerd and our snapshotter, set up as an admin would: with the configuration files of `containerd/`.

A node uses the directories that the programs use by default. In the scenario's own mount namespace, directories of the lab lie over them, so
the machine's are left alone and nothing survives. The three versions of containerd come from `integration/engines`.
"""

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import time
from pathlib import Path

from lab import Daemon, Failure, configured, tail

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parent / "target/engines"
FILES = HERE / "containerd"

# Version → the Debian release it comes from, and its configuration file.
VERSIONS = {"1.6": ("bookworm", "config-1.toml"), "1.7": ("trixie", "config-1.toml"), "2": ("sid", "config-2.toml")}

# What the configuration files call the repository, and the plugin.
FQRN = "images.example.org"
SNAPSHOTTER = "cvmfs-snapshotter"
STATE = Path("/var/lib/cvmfs-snapshotter")
PLACES = (
    *("/etc/containerd", "/run/containerd", "/var/lib/containerd", "/opt/containerd", "/run/netns", "/var/log/pods"),
    *("/etc/cvmfs-snapshotter", "/run/cvmfs-snapshotter", str(STATE), "/cvmfs", "/run/cvmfs-client"),
)

# What this kind of machine lacks: AppArmor, and the right to lower the score of the kernel's out-of-memory killer.
RESTRICTED = "disable_apparmor = true\nrestrict_oom_score_adj = true\n"


class Node:
    """One machine with containerd of a version, and the snapshotter in a directory of binaries; both are down at first."""

    def __init__(self, lab, version, binaries, pause):
        self.lab, self.version, self.pause = lab, version, pause
        self.release, self.file = VERSIONS[version]
        self.engine = ENGINES / self.release / "usr/bin"
        # The shim has to be the one of the same version; runc is the machine's.
        self.path = f"PATH={self.engine}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.binary = Path(binaries).resolve() / "cvmfs-snapshotter"
        for needed in (self.engine / "containerd", self.binary):
            if not needed.exists():
                raise Failure(f"{needed} is missing: integration/setup engines brings the engines, make build our programs")
        for place in PLACES:
            lab.place(place, lab.path("node/" + place.strip("/").replace("/", "-")))
        lab.undo(self._end_everything)
        command = ["env", self.path, "containerd"]
        self.containerd = Daemon(lab, "containerd", command, self._containerd_answers, "does not answer")
        command = [self.binary, "serve", "--config", "/etc/cvmfs-snapshotter/config.toml"]
        self.snapshotter = Daemon(lab, "snapshotter", command, self._snapshotter_answers, "does not answer on its socket")
        self.configure()

    def configure(self, *uncommented):
        """Writes the configuration files; the lines `uncommented` are comments in one of them and become settings."""
        if self.file == "config-1.toml":
            pause = 'sandbox_image = "registry.example.org/pause:3.10"'
            replacements = {pause: f'sandbox_image = "{self.pause}"\n{RESTRICTED}'}
        else:
            runtime = f'[plugins."io.containerd.cri.v1.runtime"]\n{RESTRICTED}\n[proxy_plugins.cvmfs-snapshotter]'
            replacements = {'"registry.example.org/pause:3.10"': f'"{self.pause}"', "[proxy_plugins.cvmfs-snapshotter]": runtime}
        ours = {f"# {line}": line for line in uncommented if line in (FILES / "config.toml").read_text()}
        replacements |= {f"# {line}": line for line in uncommented if f"# {line}" not in ours}
        Path("/etc/containerd/config.toml").write_text(configured(FILES / self.file, replacements))
        Path("/etc/cvmfs-snapshotter/config.toml").write_text(configured(FILES / "config.toml", ours))

    def _containerd_answers(self):
        return self.ctr("version", ok=None).returncode == 0

    def _snapshotter_answers(self):
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex("/run/cvmfs-snapshotter/snapshotter.sock") == 0

    def ctr(self, *words, namespace="default", ok=(0,)):
        """Runs containerd's own client."""
        return self.lab.run("env", self.path, "ctr", "--namespace", namespace, *words, ok=ok)

    def difference(self, file, key, namespace="default"):
        """Writes what an active snapshot changes to a file, as a layer."""
        command = f"ctr --namespace {namespace} snapshots --snapshotter {SNAPSHOTTER} diff {shlex.quote(key)} >{shlex.quote(str(file))}"
        self.lab.run("env", self.path, "sh", "-euc", command)

    def container(self, image, name, *command, snapshotter=SNAPSHOTTER, options=()):
        """Starts a container that goes on running."""
        self.ctr("run", "--detach", "--null-io", "--snapshotter", snapshotter, *options, image, name, *command)
        return Container(self, name)

    def run(self, image, name, *command, snapshotter=SNAPSHOTTER, ok=(0,), options=()):
        """Runs a container to its end and removes it; returns what `lab.run` does."""
        return self.ctr("run", "--rm", "--snapshotter", snapshotter, *options, image, name, *command, ok=ok)

    def pull(self, image, *options, snapshotter=SNAPSHOTTER, namespace="default"):
        """Pulls by containerd's own client."""
        return self.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, *options, image, namespace=namespace)

    def pull_ourselves(self, image, *options, namespace="default"):
        """Pulls by `cvmfs-snapshotter pull`."""
        return self.lab.run(self.binary, "pull", image, "--plain-http", "--namespace", namespace, *options)

    def remove(self, image, namespace="default"):
        """Removes an image and waits for containerd's garbage collection."""
        self.ctr("images", "rm", "--sync", image, namespace=namespace)

    def collect(self):
        """Has containerd collect garbage and waits for it: of itself it overlooks what is removed while it collects, until the next removal."""
        self.ctr("leases", "create", "--id", "collect")
        self.ctr("leases", "rm", "--sync", "collect")

    def blobs(self, namespace="default"):
        """Digests of all that containerd keeps of images."""
        return set(self.ctr("content", "ls", "--quiet", namespace=namespace).stdout.split())

    def snapshots(self, namespace="default", snapshotter=SNAPSHOTTER):
        """{key: (parent, kind)} as containerd lists them."""
        lines = self.ctr("snapshots", "--snapshotter", snapshotter, "ls", namespace=namespace).stdout.splitlines()[1:]
        rows = [line.split() for line in lines]
        return {row[0]: (row[1] if len(row) > 2 else "", row[-1]) for row in rows}

    def directories(self):
        """{ID: leads to the repository} of the snapshotter's directories."""
        place = STATE / "snapshots"
        return {entry.name: (entry / "fs").is_symlink() for entry in place.iterdir()} if place.exists() else {}

    def ask(self, path):
        """(status, text) of the snapshotter's control socket."""
        connection = _UnixConnection("/run/cvmfs-snapshotter/control.sock")
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def leftovers(self):
        """Mounts and processes that containers left."""
        found = []
        for line in mounts():
            kind, place = line.split(" - ")[1].split()[0], line.split()[4]
            if kind == "overlay" or place.endswith("/rootfs") or place.startswith(f"{STATE}/"):
                found.append(line)
        return found + [" ".join(command) for _, command in processes() if "containerd-shim" in command[0]]

    def first_output(self, image, name, *command, snapshotter=SNAPSHOTTER):
        """Seconds from the start of a container to the first byte that it prints."""
        return self.lab.first_output("env", self.path, "ctr", "run", "--rm", "--snapshotter", snapshotter, image, name, *command)

    def _end_everything(self):
        """What is still running when the lab ends, the scenario having failed somewhere: shims survive their containerd on purpose."""
        ours = os.readlink("/proc/self/ns/mnt")
        for pid, command in processes():
            with contextlib.suppress(OSError):
                if "containerd-shim" in command[0] or os.readlink(f"/proc/{pid}/ns/mnt") != ours:
                    os.kill(pid, signal.SIGKILL)
        for line in reversed(mounts()):
            if line.split()[4].startswith(("/run/containerd/", "/run/netns/", "/var/lib/containerd/")):
                self.lab.run("umount", "--lazy", line.split()[4], ok=None)
        for pattern in ("default", "other", "k8s.io"):
            for group in [*Path("/sys/fs/cgroup").glob(f"*/{pattern}"), Path("/sys/fs/cgroup") / pattern]:
                with contextlib.suppress(OSError):  # not ours if there is something in it
                    group.rmdir()


class Container:
    """A running container."""

    def __init__(self, node, name):
        self.node, self.name, self._execs = node, name, 0

    def exec(self, *command, user=None, ok=(0,)):
        """Runs a command in it; returns what `lab.run` does."""
        self._execs += 1
        user = ["--user", user] if user else []
        return self.node.ctr("task", "exec", "--exec-id", f"exec-{self._execs}", *user, self.name, *command, ok=ok)

    def root(self):
        """Its root directory, seen from outside."""
        rows = [line.split() for line in self.node.ctr("task", "ls").stdout.splitlines()[1:]]
        return next(f"/proc/{row[1]}/root" for row in rows if row[0] == self.name)

    def stop(self):
        """Ends its processes and keeps its snapshot."""
        self.node.ctr("task", "kill", "--signal", "KILL", self.name, ok=None)
        self.node.ctr("task", "rm", "--force", self.name, ok=None)

    def remove(self):
        """Ends it and removes it with its snapshot."""
        self.stop()
        self.node.ctr("container", "rm", self.name)


class Pods:
    """The CRI side of a node, as the kubelet uses it."""

    def __init__(self, node, client):
        self.node, self.client = node, client

    def call(self, *words, ok=(0,)):
        """One call; returns the answer."""
        done = self.node.lab.run(self.client, "/run/containerd/containerd.sock", *words, ok=ok)
        return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def mounts():
    """The lines of the kernel's table of mounts."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


def processes():
    """(process ID, command) of all processes of the scenario that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                if command[0]:  # not what has ended and waits to be looked at
                    found.append((int(entry.name), command))
    return found


def within(seconds, condition):
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not (right := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return right
