#!/usr/bin/env python3
"""The units that come with the programs, under a real systemd: a node and a publisher that nobody looks after.

A machine is set up as the documents say and boots. Programs are killed and restarted while containers run, its power is cut, it boots again,
and everything is there again without help: repositories mounted, images found, containers started, pushes published. Needs root.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integration"), str(ROOT / "integration/watch")]
import lab as laboratory
import registry
from containerd import ENGINES, FQRN, SNAPSHOTTER, within
from lab import Lab
from layers import Stack
from machine import Machine
from products import Repository
from watch import image

ENGINE = ENGINES / "sid/usr/bin"
CLIENT, SERVICE, SOCKET = f"cvmfs-client@{FQRN}.service", "cvmfs-snapshotter.service", "cvmfs-snapshotter.socket"
MOUNT = f"/cvmfs/{FQRN}"
# By its status: the client of containerd may lose the output of what ends at once.
COMMAND = ("grep", "-qx", "11", "/opt/layers/last")


class Node:
    """A worker node with containerd; off at first."""

    def __init__(self, lab, binaries):
        self.lab, self.machine, self.starts, self.said = lab, Machine(lab, [ENGINE]), 0, None
        for name in ("cvmfs-client", "cvmfs-snapshotter", "cvmfs-publisher", "thin-image"):
            self.machine.install(Path(binaries) / name, f"/usr/bin/{name}")
        self.machine.path("/usr/sbin/mount.cvmfs").symlink_to("/usr/bin/cvmfs-client")
        for unit in ROOT.glob("*/dist/*.service"):
            if unit.name != SERVICE:  # `cvmfs-snapshotter install` brings its own
                self.machine.install(unit, f"/etc/systemd/system/{unit.name}")
        for name in ("containerd", "containerd-shim-runc-v2", "ctr"):
            self.machine.path(f"/usr/bin/{name}").symlink_to(ENGINE / name)
        # Debian's unit, without what this kind of machine lacks: modules to load, and the right to raise limits.
        lines = (ENGINE.parent / "lib/systemd/system/containerd.service").read_text().splitlines()
        left_out = ("ExecStartPre", "LimitNPROC", "LimitCORE", "OOMScoreAdjust")
        text = "".join(f"{line}\n" for line in lines if not line.startswith(left_out))
        self.machine.write("/usr/lib/systemd/system/containerd.service", text)

    def ctr(self, *words, ok=(0,)):
        """Runs containerd's own client."""
        return self.machine.run("ctr", *words, ok=ok)

    def begins(self, reference):
        """Whether a container of an image starts and finds what it looks for."""
        self.starts += 1
        name = f"start-{self.starts}"
        done = self.ctr("run", "--rm", "--snapshotter", SNAPSHOTTER, reference, name, *COMMAND, ok=None)
        if done.returncode != 0:
            self.ctr("containers", "rm", name, ok=None)
            self.ctr("snapshots", "--snapshotter", SNAPSHOTTER, "rm", name, ok=None)
            self.said = done.stderr
        return done.returncode == 0

    def blobs(self):
        """Digests of all that containerd keeps of images."""
        return set(self.ctr("content", "ls", "--quiet").stdout.split())


class Scenario:
    """What the steps work on."""

    def __init__(self, lab, binaries):
        self.lab, self.check, self.equal = lab, lab.check, lab.equal
        self.binaries = Path(binaries).resolve()
        self.stack = Stack(lab.home, ENGINES)
        self.registry = registry.Registry(lab)
        self.reference = f"{self.registry.url.removeprefix('http://')}/lab/twelve:1"
        registry.push(self.stack.layout("twelve"), self.registry.url, "lab/twelve", "1")
        self.repository = Repository(lab, binaries, FQRN)
        self.repository.create("--ttl", "5")
        self.repository.wish(f"http://{self.reference}")
        self.repository.convert()
        self.port = self.repository.serve()
        self.node = Node(lab, self.binaries)
        self.machine = self.node.machine

    def starts(self, what, seconds=30):
        """Checks that containers start, soon."""
        begin = time.monotonic()
        self.check(f"{what}: a container starts", within(seconds, lambda: self.node.begins(self.reference)), self.node.said)
        print(f"{what}: a container has run after {time.monotonic() - begin:.1f} s", flush=True)


# The steps


def set_up(s):
    """As README.md and the documents of the programs say."""
    machine = s.machine
    machine.write("/etc/cvmfs/default.local", f"CVMFS_SERVER_URL=http://127.0.0.1:{s.port}/cvmfs/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\n")
    machine.install(s.repository.keys / f"{FQRN}.pub", f"/etc/cvmfs/keys/{FQRN}.pub")
    machine.write("/etc/cvmfs-snapshotter/config.toml", f'[[repositories]]\nname = "{FQRN}"\n')
    machine.boot()
    done = machine.run("cvmfs-snapshotter", "install", "--containerd")
    said = done.stdout + done.stderr
    commands = [line.strip() for line in said.splitlines() if line.strip().startswith("systemctl ")]
    s.check("install says how to go on", len(commands) == 3, said)
    machine.systemctl("enable", "--now", CLIENT, "containerd")
    for command in commands:
        machine.run(*command.split())
    for unit in (CLIENT, SOCKET, SERVICE, "containerd"):
        s.check(f"{unit} is active", machine.is_active(unit), machine.systemctl("status", unit, ok=None).stdout)
    done = machine.run("cvmfs-snapshotter", "doctor", ok=None)
    s.equal("doctor finds nothing wrong", done.returncode, 0)
    if done.returncode:
        print(done.stdout + done.stderr)
    s.node.ctr("images", "pull", "--plain-http", "--snapshotter", SNAPSHOTTER, s.reference)
    layers = set(s.stack.layers("twelve"))
    s.equal("layers that were downloaded", s.node.blobs() & layers, set())
    s.starts("set up")
    s.node.ctr("run", "--detach", "--null-io", "--snapshotter", SNAPSHOTTER, s.reference, "watcher", "sleep", "100000")


def goes_on(s, what, container="watcher"):
    """Checks that a container that runs finds its files."""
    done = s.node.ctr("task", "exec", "--exec-id", f"exec-{time.monotonic_ns()}", container, *COMMAND, ok=None)
    s.check(f"{what}: a running container goes on", done.returncode == 0, done.stderr)


def snapshotter_restarts(s):
    """Nobody notices a restart, in whichever way: systemd holds the socket."""
    for way in ("restart", "kill -9"):
        before = s.machine.main_process(SERVICE)
        if way == "restart":
            s.machine.systemctl("restart", SERVICE)
        else:
            s.machine.kill(SERVICE)
            within(30, lambda: not s.machine.has(f"/proc/{before}"))  # it may answer until the signal has arrived
        s.check(f"snapshotter, {way}: the first start goes through", s.node.begins(s.reference), s.node.said)
        s.check("it is another process", s.machine.main_process(SERVICE) not in (0, before))
        goes_on(s, f"snapshotter, {way}")
    s.check("it has its socket from systemd", "activated=true" in s.machine.journal(SERVICE))


def client_restarts(s):
    """A restart gives new containers a new client; those that run keep theirs. One that is killed comes back by itself."""
    before = s.machine.main_process(CLIENT)
    s.machine.systemctl("restart", CLIENT)
    after = s.machine.main_process(CLIENT)
    s.check("client, restart: it is another process", after not in (0, before), after)
    goes_on(s, "client, restart")
    s.starts("client, restart")
    s.check("the old client serves those that run", s.machine.has(f"/proc/{before}"), before)
    s.node.ctr("task", "kill", "--signal", "KILL", "watcher")
    within(30, lambda: s.node.ctr("task", "rm", "--force", "watcher", ok=None).returncode == 0)
    s.node.ctr("containers", "rm", "watcher")
    s.check("and ends with the last of them", within(30, lambda: not s.machine.has(f"/proc/{before}")), before)

    s.machine.kill(CLIENT)
    s.check("client, kill -9: it is mounted again", within(30, lambda: s.machine.is_active(CLIENT) and s.machine.has(f"{MOUNT}/.layers")))
    s.starts("client, kill -9")

    s.machine.systemctl("stop", CLIENT)
    s.check("client, stop: nothing is mounted", not s.machine.has(f"{MOUNT}/.layers"))
    s.equal("it ended in order", s.machine.shows(CLIENT, "Result"), "success")
    s.machine.systemctl("start", CLIENT)
    s.machine.run("umount", MOUNT)
    s.check("client, umount by hand: it stays unmounted", within(30, lambda: s.machine.shows(CLIENT, "ActiveState") == "inactive"))
    s.machine.systemctl("start", CLIENT)
    s.check("and can be started again", s.machine.has(f"{MOUNT}/.layers"))


def power(s):
    """Power is cut, and the machine shut down in order, while containers run; with the registry gone everything comes back by itself."""
    s.registry.stop()
    try:
        for number, end in enumerate((s.machine.cut, s.machine.shut_down)):
            s.node.ctr("run", "--detach", "--null-io", "--snapshotter", SNAPSHOTTER, s.reference, f"running-{number}", "sleep", "100000")
            what = "power cut" if end == s.machine.cut else "shut down"
            seconds = end()
            if seconds:
                print(f"shut down with a running container in {seconds:.1f} s", flush=True)
                s.check("it does not wait for anything", seconds < 30, seconds)
            s.machine.boot()
            s.equal(f"{what}: no unit has failed", s.machine.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout, "")
            s.starts(f"{what}, boot")
            s.equal("layers that were downloaded", s.node.blobs() & set(s.stack.layers("twelve")), set())
    finally:
        s.registry.start()


def fstab(s):
    """By fstab instead of the unit: mount(8), mounted at boot, and at first use."""
    machine = s.machine
    machine.systemctl("disable", "--now", CLIENT)
    line = lambda options: machine.write("/etc/fstab", f"{FQRN} {MOUNT} cvmfs {options} 0 0\n")
    line("_netdev,noauto,CVMFS_QUOTA_LIMIT=1000")
    machine.run("mount", MOUNT)
    s.check("mount(8) mounts what fstab says", machine.has(f"{MOUNT}/.layers"))
    status = json.loads(machine.run("cvmfs-client", "status", MOUNT, "--json").stdout)
    s.equal("with its options", status["cache_limit"], 1000 << 20)
    again = machine.run("mount", MOUNT, ok=None)
    s.check("a second time is refused, and said why", again.returncode != 0 and "already mounted" in again.stderr, again.stderr)
    machine.run("umount", MOUNT)
    wrong = machine.run("mount", "-t", "cvmfs", "nothing.example.org", MOUNT, ok=None)
    s.check("what can't be mounted says why", wrong.returncode == 32 and "nothing.example.org" in wrong.stderr, wrong.stderr)
    for options in ("_netdev", "_netdev,x-systemd.automount"):
        line(options)
        machine.cut()
        machine.boot()
        unit = machine.run("systemd-escape", "--path", "--suffix", "mount", MOUNT).stdout.strip()
        s.starts(f"fstab {options}")
        s.check(f"fstab {options}: it is mounted", machine.is_active(unit), machine.systemctl("status", unit, unit.replace(".mount", ".automount"), ok=None).stdout)


def automounter(s):
    """The daemon of autofs mounts at first use and unmounts under a container that runs, which goes on; new ones get a mount of their own."""
    machine = s.machine
    machine.write("/etc/fstab", "")
    machine.systemctl("disable", "--now", CLIENT)
    machine.cut()
    machine.install("/usr/lib/systemd/system/autofs.service", "/usr/lib/systemd/system/autofs.service")
    # Debian's unit would end the clients with the daemon.
    machine.write("/etc/systemd/system/autofs.service.d/clients.conf", "[Service]\nKillMode=process\n")
    machine.write("/etc/auto.master", "/cvmfs /etc/auto.cvmfs --timeout 2\n")
    machine.write("/etc/auto.cvmfs", "* -fstype=cvmfs :&\n")
    machine.boot()
    machine.systemctl("enable", "--now", "autofs")
    s.starts("autofs")
    s.node.ctr("run", "--detach", "--null-io", "--snapshotter", SNAPSHOTTER, s.reference, "held", "sleep", "100000")
    is_mounted = lambda: machine.run("grep", "-q", f" {MOUNT} .* - fuse ", "/proc/self/mountinfo", ok=None).returncode == 0
    s.check("autofs has mounted it", is_mounted())
    s.check("autofs unmounts it under the container", within(60, lambda: not is_mounted()))
    goes_on(s, "autofs, unmounted", "held")
    s.starts("autofs, unmounted")
    s.check("autofs has mounted it again", is_mounted())
    goes_on(s, "autofs, mounted again", "held")
    machine.systemctl("restart", "autofs")
    goes_on(s, "autofs, restarted", "held")
    s.starts("autofs, restarted")
    machine.systemctl("disable", "--now", "autofs")


def docker_plugins(s):
    """Both plugins for Docker are there before Docker is, keep the mounts of volumes when they restart, and come back."""
    machine = s.machine
    machine.write("/etc/thin-image/config.toml", (ROOT / "integration/docker/thin-image.toml").read_text())
    call = lambda method, body: json.loads(
        machine.run("curl", "-sS", "--unix-socket", "/run/docker/plugins/cvmfs.sock", "-d", json.dumps(body), f"http://docker/{method}").stdout
    )
    for unit, driver in (("thin-image-volumes.service", "VolumeDriver"), ("thin-image-graphdriver.service", "GraphDriver")):
        machine.start(unit)
        s.check(f"{unit}: it is what Docker looks for", driver in call("Plugin.Activate", {})["Implements"])
        s.equal(f"{unit}: a volume", call("VolumeDriver.Create", {"Name": f"{FQRN}@trunk"}).get("Err", ""), "")
        place = call("VolumeDriver.Mount", {"Name": f"{FQRN}@trunk", "ID": "container"})
        s.check(f"{unit}: the volume is mounted", machine.has(f"{place.get('Mountpoint')}/.layers"), place)
        for way in ("restart", "kill -9"):
            before = machine.main_process(unit)
            machine.systemctl("restart", unit) if way == "restart" else machine.kill(unit)
            s.check(f"{unit}, {way}: it is there again", within(30, lambda: machine.main_process(unit) not in (0, before) and machine.is_active(unit)))
            s.check(f"{unit}, {way}: the volume is still mounted", machine.has(f"{place['Mountpoint']}/.layers"))
        s.equal(f"{unit}: the volume is let go", call("VolumeDriver.Unmount", {"Name": f"{FQRN}@trunk", "ID": "container"}).get("Err", ""), "")
        s.equal(f"{unit}: and forgotten", call("VolumeDriver.Remove", {"Name": f"{FQRN}@trunk"}).get("Err", ""), "")
        s.check(f"{unit}: nothing is mounted for it", within(30, lambda: not machine.has(f"{place['Mountpoint']}/.layers")))
        machine.systemctl("stop", unit)
        s.equal(f"{unit}: it ended in order", machine.shows(unit, "Result"), "success")


def publisher(s):
    """It publishes what is pushed, is started again when it is stuck or killed, and goes on after a power cut."""
    machine, fqrn = s.machine, "watched.example.org"
    unit, reference = f"cvmfs-publisher-watch@{fqrn}.service", f"{s.registry.url}/lab/watched:1"
    machine.run("cvmfs-publisher", "init", fqrn)
    machine.write(f"/etc/cvmfs/wishlists/{fqrn}.yaml", f"version: 1\ncvmfs_repo: {fqrn}\ninput:\n  - {json.dumps(reference)}\n")
    machine.write("/etc/default/cvmfs-publisher-watch", "OPTIONS=--interval 1s\n")
    # Half an hour is too long for a scenario.
    machine.write(f"/etc/systemd/system/{unit}.d/soon.conf", "[Service]\nWatchdogSec=3\nRestartSec=1\n")
    machine.systemctl("daemon-reload")

    push = lambda number: registry.push(image(s.lab, "watched", number), s.registry.url, "lab/watched", "1")

    def published(number, what):
        """Checks that what was pushed last is published."""
        found = lambda: json.loads(machine.run("cvmfs-publisher", "--json", "images", fqrn, ok=None).stdout or "[]")
        digest = json.loads((s.lab.dir / f"layouts/watched-{number}/index.json").read_text())["manifests"][0]["digest"]
        s.check(f"publisher, {what}: what is pushed is published", within(60, lambda: digest in json.dumps(found())), found())

    push(1)
    machine.systemctl("enable", "--now", unit)
    published(1, "started")
    push(2)
    published(2, "running")
    for what, number in (("kill -9", signal.SIGKILL), ("stuck", signal.SIGSTOP)):
        before = machine.main_process(unit)
        machine.kill(unit, number)
        s.check(f"publisher, {what}: it is started again", within(30, lambda: machine.main_process(unit) not in (0, before) and machine.is_active(unit)))
        push(100 + number)
        published(100 + number, what)
    s.check("systemd has said why", "watchdog" in machine.run("journalctl", "--no-pager", "--unit", unit).stdout.lower())
    machine.cut()
    push(3)
    machine.boot()
    published(3, "power cut")
    s.equal("the repository is sound", machine.run("cvmfs-publisher", "check", fqrn, ok=None).returncode, 0)
    machine.systemctl("stop", unit)
    s.equal("it ended in order", machine.shows(unit, "Result"), "success")


STEPS = (set_up, snapshotter_restarts, client_restarts, power, fstab, automounter, docker_plugins, publisher)


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of our programs")
    args = parser.parse_args()
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        s = Scenario(lab, args.bin)
        for step in STEPS:
            begin = time.monotonic()
            step(s)
            print(f"{step.__name__.replace('_', ' ')}: {time.monotonic() - begin:.1f} s", flush=True)
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
