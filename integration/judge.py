"""Docker as it comes, with an image store of its own: what other engines make of an image's config is compared with what it makes."""

import contextlib
import json
import subprocess
from pathlib import Path

from containerd import mounts
from lab import Failure


class Docker:
    """A dockerd with the containerd that comes with it; nothing of ours is in it."""

    def __init__(self, lab, engines):
        self.lab, self.home = lab, lab.path("docker")
        programs = Path(engines).resolve() / "sid/usr"
        if not (programs / "sbin/dockerd").exists():
            raise Failure(f"{programs}/sbin/dockerd is missing: integration/engines brings it")
        lab.place("/run/docker", lab.path("docker/run"))  # names of sockets have to be short
        self.environment = ["env", f"PATH={programs}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_HOST=unix:///run/docker/docker.sock"]
        self.environment.append(f"DOCKER_CONFIG={self.home}/client")
        settings = {
            "hosts": ["unix:///run/docker/docker.sock"],
            "pidfile": "/run/docker/docker.pid",
            "exec-root": "/run/docker",
            "data-root": str(self.home / "data"),
            "storage-driver": "vfs",  # works on any file system
            **{"bridge": "none", "iptables": False, "ip6tables": False, "userland-proxy": False},
        }
        (self.home / "daemon.json").write_text(json.dumps(settings))
        lab.undo(self._unmount)
        command = [*self.environment, programs / "sbin/dockerd", "--config-file", self.home / "daemon.json"]
        lab.start("dockerd", command, lambda: lab.run(*self.environment, "docker", "version", ok=None).returncode == 0, "does not answer")

    def _unmount(self):
        for line in reversed(mounts()):
            if line.split()[4].startswith(("/run/docker/", f"{self.home}/")):
                self.lab.run("umount", "--lazy", line.split()[4], ok=None)
        for group in [*Path("/sys/fs/cgroup").glob("*/docker"), Path("/sys/fs/cgroup/docker")]:
            with contextlib.suppress(OSError):  # not ours if there is something in it
                group.rmdir()

    def version(self):
        """Of the daemon."""
        return self.lab.run(*self.environment, "docker", "version", "--format", "{{.Server.Version}}").stdout.strip()

    def pull(self, reference):
        """Pulls an image."""
        self.lab.run(*self.environment, "docker", "pull", "--quiet", reference)

    def run(self, reference, *words, ok=(0,)):
        """Runs a container to its end; `.stdout` is bytes."""
        command = [*self.environment, "docker", "run", "--rm", "--network", "none", "--log-driver", "none", reference, *words]
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True)
        if ok is not None and done.returncode not in ok:
            raise Failure(f"status {done.returncode} from docker run {reference}: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return done
