"""dockerd on a node of `containerd.py`, set up as an admin would: with the file `daemon.json` beside this one."""

import contextlib
import json
from pathlib import Path

from lab import Daemon, is_mounted

PLACES = ("/etc/docker", "/run/docker", "/var/lib/docker")

# Docker's namespace in containerd.
MOBY = "moby"

# What is of this scenario only: no networks, and sockets in a directory that is the lab's.
HERE = {
    "bridge": "none",
    "iptables": False,
    "ip6tables": False,
    "userland-proxy": False,
    "hosts": ["unix:///run/docker/docker.sock"],
    "pidfile": "/run/docker/docker.pid",
}

# Files that Docker puts into every container.
ADDED = (".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab")


class Docker:
    """Docker on a node whose containerd has to be up first; down at first."""

    def __init__(self, lab, node, file="daemon.json", **more):
        self.lab, self.node = lab, node
        for place in PLACES:
            lab.place(place, lab.path("node/" + place.strip("/").replace("/", "-")))
        self.write(file, **more)
        client = lab.path("docker-client")
        plugins = node.engine.parent / "libexec/docker/cli-plugins"
        (client / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(plugins)]}))
        self.environment = [node.path, f"DOCKER_CONFIG={client}", "DOCKER_HOST=unix:///run/docker/docker.sock"]
        # Ends before the node's containerd does, or it would wait for its containers.
        lab.undo(self._clean)
        command = ["env", node.path, node.engine.parent / "sbin/dockerd", "--config-file", "/etc/docker/daemon.json"]
        self.daemon = Daemon(lab, "dockerd", command, self._answers, "does not answer")

    def write(self, file, **more):
        """Has the next start use one of the files beside this one; `more` is what a scenario sets besides."""
        self.file = file
        settings = json.loads((Path(__file__).parent / file).read_text())
        Path("/etc/docker/daemon.json").write_text(json.dumps(settings | HERE | more))

    def configure(self, more):
        """Starts it again with more settings."""
        self.write(self.file, **more)
        self.daemon.stop()
        self.daemon.start()

    def first_output(self, *words):
        """Seconds from a command of Docker's client to the first byte that it prints."""
        return self.lab.first_output("env", *self.environment, self.node.engine / "docker", *words)

    def _answers(self):
        return self.docker("version", ok=None).returncode == 0

    def _clean(self):
        """What dockerd leaves when it ends."""
        if is_mounted("/run/docker/netns/default"):
            self.lab.run("umount", "/run/docker/netns/default", ok=None)
        for name in ("docker/buildkit", "docker"):
            for group in [*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup") / name]:
                with contextlib.suppress(OSError):  # not ours if there is something in it
                    group.rmdir()

    def docker(self, *words, ok=(0,), environment=()):
        """Runs Docker's client; returns what `lab.run` does."""
        return self.lab.run("env", *self.environment, *environment, self.node.engine / "docker", *words, ok=ok)

    def version(self):
        """Of the daemon."""
        return self.docker("version", "--format", "{{.Server.Version}}").stdout.strip()

    def container(self, image, *command):
        """Starts a container that goes on running."""
        # A process 1 that handles no signal would keep everybody waiting for ten seconds.
        name = self.docker("run", "--detach", "--network", "none", "--stop-timeout", "0", image, *command).stdout.strip()
        return Container(self, name)

    def run(self, image, *command, ok=(0,)):
        """Runs a container to its end and removes it; returns what `lab.run` does."""
        return self.docker("run", "--rm", "--network", "none", image, *command, ok=ok)

    def list(self, *words):
        """The lines that a command prints."""
        return self.docker(*words).stdout.split()


class Container:
    """A container of Docker's; the same verbs as containerd.Container."""

    def __init__(self, engine, name):
        self.engine, self.name = engine, name

    def exec(self, *command, user=None, ok=(0,)):
        """Runs a command in it; returns what `lab.run` does."""
        user = ["--user", user] if user else []
        return self.engine.docker("exec", *user, self.name, *command, ok=ok)

    def root(self):
        """Its root directory, seen from outside."""
        return f"/proc/{self.inspect('.State.Pid')}/root"

    def inspect(self, what):
        """A value that Docker knows of it."""
        return self.engine.docker("inspect", "--format", "{{" + what + "}}", self.name).stdout.strip()

    def remove(self):
        """Ends it and removes it with its snapshot."""
        self.engine.docker("rm", "--force", self.name)
