#!/usr/bin/env python3
"""The snapshotter under fire: containers start while it restarts, and kill -9 at random moments of pulls and removals.

  make soak COUNT=50        (SEED=n repeats a run's moments)

First containers of several images start and are removed, and the daemon is restarted before each ten, in turn by SIGTERM and kill -9, while
one container goes on running. None may fail: the socket is held for the daemon, as systemd does. Without that, containerd refuses everything
for some seconds after it found nobody on the socket, and that is how the rest goes: the daemon is killed during pulls and removals and
started again; then the same request has to succeed with no help, and what a container sees has to be right. In the end everything is removed:
no mount, no process, no directory of the daemon's and no row of containerd's may be left. Needs root.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integration"), str(ROOT / "integration/containerd")]
import lab as laboratory
from case import Case, Site
from containerd import SNAPSHOTTER, VERSIONS, Daemon, within
from lab import Lab
from table import Table

# How long a request may take to succeed after the daemon is back: containerd waits up to three seconds before it connects again.
PATIENCE = 30

NAMES = ("one", "twelve", "sixty", "gap")

# Succeeds in every image. By its status: the client may lose the output of what ends at once.
COMMAND = ["grep", "-qx", "nogroup:x:65534:", "/etc/group"]


class Activated(Daemon):
    """The daemon with its socket held for it, as systemd holds the socket of a unit: calls wait while it is down."""

    def __init__(self, node):
        of = node.snapshotter
        super().__init__(of.lab, "activated", of.command, _healthy, "does not answer on its control socket")
        self._place = Path("/run/cvmfs-snapshotter/snapshotter.sock")
        self._place.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._place))
        self._socket.listen(128)
        self.lab.undo(self._socket.close)

    def start(self):
        """Returns when it is ready."""
        self.starts += 1
        number = self._socket.fileno()
        handing_over = ["bash", "-c", f'exec 3<&{number}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "bash", *self.command]
        name = f"{self.name}-{self.starts}"
        self.process = self.lab.start(name, handing_over, self.ready, self.otherwise, pass_fds=[number])

    def let_go(self):
        """Gives up the socket."""
        self._socket.close()
        self._place.unlink()


def _healthy():
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex("/run/cvmfs-snapshotter/control.sock") == 0


class Soak(Case):
    """A node under fire."""

    def __init__(self, lab, args):
        super().__init__(lab, args.version, Site(lab, args), Table())
        self.dice, self.prefix = random.Random(args.seed), ""
        self.longest = 0

    # Starts

    def starts(self, count):
        """Containers start and are removed; the daemon, whose socket is held for it, restarts before each ten."""
        ordinary, self.node.snapshotter = self.node.snapshotter, Activated(self.node)
        ordinary.stop()
        self.node.snapshotter.start()
        self._starts(count)
        self.node.snapshotter.stop()
        self.node.snapshotter.let_go()
        self.node.snapshotter = ordinary
        ordinary.start()
        self.check("containerd reaches the daemon", within(PATIENCE, self.reached))

    def reached(self):
        """Whether containerd reaches the daemon: it answers by itself for what it has no row of."""
        words = ["snapshots", "--snapshotter", SNAPSHOTTER]
        done = self.node.ctr(*words, "prepare", "reached", ok=None)
        self.node.ctr(*words, "rm", "reached", ok=None)
        return done.returncode == 0

    def _starts(self, count):
        for name in NAMES:
            self.pull(name)
        watcher = self.container("twelve")
        before = self.kept()
        failures, restarts, start = [], 0, time.monotonic()
        for number in range(count):
            # Before ten starts and not after them: what containerd could not collect during a restart, it collects with the next removal.
            if number % 10 == 0:
                self.restart(self.node.snapshotter.kill if restarts % 2 else self.node.snapshotter.stop)
                restarts += 1
                self.equal(f"restart {restarts}: a running container goes on", watcher.exec(*COMMAND, ok=None).returncode, 0)
            name = self.dice.choice(NAMES)
            done = self.node.run(self.reference(name), f"start-{number}", *COMMAND, ok=None)
            if done.returncode != 0:
                failures.append(f"start {number}, of {name}: status {done.returncode} {done.stdout} {done.stderr}")
                self.node.ctr("containers", "rm", f"start-{number}", ok=None)
        seconds = time.monotonic() - start
        print(f"{count} containers started and removed in {seconds:.1f} s, {restarts} restarts: {len(failures)} failed", flush=True)
        self.check("no start fails", not failures, "\n    ".join(failures))
        self.equal("snapshots, directories and rows are as before", self.kept(), before)
        self.right("twelve", watcher)
        watcher.remove()
        self.sweep()

    def restart(self, end):
        """Ends the daemon in a way and starts it again."""
        end()
        self.node.snapshotter.start()

    def kept(self):
        """Snapshots, directories of the daemon and containers that are there after garbage collection."""
        self.node.collect()
        return self.node.snapshots(), self.node.directories(), self.node.ctr("containers", "ls", "--quiet").stdout.split()

    # Kills

    def kills(self, count):
        """The daemon is killed at random moments of pulls and removals."""
        durations = self.measure()
        texts = ", ".join(f"{what} {name} {seconds:.2f} s" for (what, name), seconds in durations.items())
        print(f"undisturbed: {texts}", flush=True)
        killed = survived = 0
        while killed < count:
            # Half of each kind; of a kind, each moment of each image is as likely as any other.
            what = self.dice.choice(("pull", "remove"))
            name = self.dice.choices(NAMES, [durations[what, name] for name in NAMES])[0]
            self.prepare(what, name)
            moment = durations[what, name] * self.dice.uniform(0, 1)
            status = self.interrupted(what, name, moment)
            if status is None:
                continue  # it had ended before
            killed += 1
            survived += status == 0
            self.prefix = f"kill {killed}, {what} {name} after {moment:.2f} s: "
            self.recover(what, name)
            print(f"  {killed:3} {what:6} {name:6} killed after {moment:5.2f} s: {'went through' if status == 0 else 'failed, then went through'}", flush=True)
        self.prefix = "after all kills: "
        self.sweep()
        print(f"{killed} killed: {killed - survived} requests failed, each went through again within {self.longest:.1f} s of the daemon's start", flush=True)

    def measure(self):
        """Seconds that each kind of request takes undisturbed."""
        durations = {}
        for name in NAMES:
            for what in ("pull", "remove"):
                start = time.monotonic()
                self.lab.run(*self.request(what, name))
                durations[what, name] = time.monotonic() - start
        return durations

    def request(self, what, name):
        """The command line of a request; pulls are lazy with each version."""
        image, ctr = self.reference(name), ["env", self.node.path, "ctr", "images"]
        if what == "remove":
            return [*ctr, "rm", "--sync", image]
        if self.version == "2":
            return [*ctr, "pull", "--plain-http", "--snapshotter", SNAPSHOTTER, image]
        return [self.node.binary, "pull", "--plain-http", image]

    def images(self):
        """The images that containerd has."""
        return self.node.ctr("images", "ls", "--quiet").stdout.split()

    def prepare(self, what, name):
        """Makes a request possible."""
        there = self.reference(name) in self.images()
        if there == (what == "pull"):
            self.lab.run(*self.request("remove" if there else "pull", name))

    def interrupted(self, what, name, moment):
        """Kills the daemon during a request and starts it again; the status of the request, or None if it had ended before."""
        with open(self.lab.dir / "request.log", "wb") as log:
            process = subprocess.Popen(self.request(what, name), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(moment)
            return None if status == 0 else status
        except subprocess.TimeoutExpired:
            self.node.snapshotter.kill()
        self.node.snapshotter.start()
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.check(f"{what} {name} ends within a minute after the daemon was killed", False)
            return 1

    def recover(self, what, name):
        """The same request goes through, with no help; then everything is as it should be."""
        start = time.monotonic()
        last = []

        def again():
            last[:] = [self.lab.run(*self.request(what, name), ok=None)]
            return last[0].returncode == 0

        self.check("the same request goes through", within(PATIENCE, again), last and last[0].stderr)
        self.check("containerd reaches the daemon", within(PATIENCE, self.reached))
        self.longest = max(self.longest, time.monotonic() - start)
        if what == "pull":
            container = self.container(name)
            self.right(name, container)
            container.remove()
        else:
            self.check("the image is gone", self.reference(name) not in self.images())


def scenario():
    args = arguments()
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        soak = Soak(lab, args)
        print(f"containerd {args.version}, seed {args.seed}", flush=True)
        soak.starts(args.starts)
        soak.kills(args.count)
    return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher, cvmfs-client and cvmfs-snapshotter")
    parser.add_argument("--version", choices=VERSIONS, default="2", help="version of containerd")
    parser.add_argument("--starts", type=int, default=100, help="how many containers start")
    parser.add_argument("--count", type=int, default=50, help="how many times the daemon is killed")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")) or int(time.time()), help="repeats the moments of a run")
    parser.set_defaults(cri=None)
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
