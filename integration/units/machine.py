"""A machine with systemd as its first process, that boots, loses its power, and boots again.

```
lab ── unshare (mounts, processes, control groups, host name) ── an overlay of this machine's files as root ── systemd
```
What it changes lies in the lab and outlives a boot. It has the network of the scenario, the units of `UNITS` and those that are put into it,
nothing else of this machine's: none of them may touch what is not divided between namespaces (kernel parameters, modules, devices).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from lab import Failure, tail

# Units of systemd's own that a machine can't do without, or that those of others name.
UNITS = (
    *("basic", "final", "getty", "local-fs", "local-fs-pre", "multi-user", "network", "network-online", "network-pre", "nss-lookup", "paths", "poweroff"),
    *("remote-fs", "remote-fs-pre", "shutdown", "slices", "sockets", "swap", "sysinit", "time-set", "time-sync", "timers", "umount"),
)
SERVICES = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-poweroff.service")

DEVICES = ("autofs", "fuse", "full", "kmsg", "null", "random", "tty", "urandom", "zero")
SYSTEMD = "/lib/systemd/systemd"
CGROUPS = Path("/sys/fs/cgroup")
# Seconds that a boot, or a shutdown, may take.
PATIENCE = 60

# Makes the machine's mounts and becomes its first process. $1: its directory, $2: systemd, $3: devices, $4: directories of this machine.
BOOT = """
root=$1/root
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/,upperdir=$1/changes/upper,workdir=$1/changes/work $root
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount -t tmpfs -o mode=755 tmpfs $root/dev
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
for device in $3; do touch $root/dev/$device; mount --bind /dev/$device $root/dev/$device; done
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
while read -r name options; do
  mkdir -p $root/sys/fs/cgroup/$name
  mount -t ${options%% *} -o ${options##* } cgroup $root/sys/fs/cgroup/$name
done <$1/hierarchies
mount --bind $1/state $root/var/lib
for place in $4; do mkdir -p $root$place; mount --bind $place $root$place; done
# No chroot: whoever enters the mount namespace of a container would find himself outside.
cd $root
pivot_root . mnt
umount --lazy mnt
exec /usr/bin/env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin $2 --log-target=journal
"""


class Machine:
    """Off at first. `places`: directories of this machine that it has as well, such as those of engines."""

    def __init__(self, lab, places):
        if not Path(SYSTEMD).exists():
            raise Failure(f"{SYSTEMD} is missing: integration/setup units")
        self.lab, self.places, self.home, self.boots = lab, places, lab.path("machine"), 0
        changes = self.home / "changes"
        changes.mkdir()
        lab.mount(changes, "mount", "-t", "tmpfs", "none", changes)  # an overlay can't lie on an overlay
        # What containers write into has to lie on something that is no overlay.
        for name in ("changes/upper", "changes/work", "state", "root"):
            (self.home / name).mkdir()
        self._process = self._first = None
        self.groups = [group / f"lab-{os.getpid()}-{time.time_ns()}" for group in self._hierarchies()]
        lab.undo(self._end)
        self._own_units()

    # Files

    def path(self, path):
        """Where a file of the machine's is, while it is off: what it has changed. A directory above it is made."""
        path = self.home / "changes/upper" / str(path).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, path, text):
        """Writes a file of the machine, whether it is on or off."""
        place = Path(f"/proc/{self._first}/root{path}") if self._first else self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def install(self, source, path):
        """Puts a program or a unit into the machine, which is off."""
        shutil.copy(source, self.path(path))

    def _own_units(self):
        units, generators = Path("/usr/lib/systemd/system"), Path("/usr/lib/systemd/system-generators")
        for place in (units, generators, Path("/etc/systemd/system"), Path("/etc/init.d")):
            directory = self.path(place)
            directory.mkdir()
            os.setxattr(directory, "trusted.overlay.opaque", b"y")  # what this machine has there is not seen
        for name in [*(f"{name}.target" for name in UNITS), *SERVICES, "-.slice", "system.slice"]:
            unit = units / name
            if unit.exists():  # the two slices are in the program
                shutil.copy(unit, self.path(unit))
        shutil.copy(generators / "systemd-fstab-generator", self.path(generators))
        sockets = self.path(units / "sockets.target.wants")
        sockets.mkdir()
        for name in SERVICES[1:3]:
            (sockets / name).symlink_to(f"../{name}")
        self.path("/etc/systemd/system/default.target").symlink_to(units / "multi-user.target")
        # As Debian has it.
        self.path("/etc/systemd/system/multi-user.target.wants/remote-fs.target").symlink_to(units / "remote-fs.target")
        self.path("/etc/fstab").write_text("")
        # So long a process that heeds no SIGTERM holds up a shutdown, as the first of most containers: 90 s by default.
        self.path("/etc/systemd/system.conf").write_text("[Manager]\nDefaultTimeoutStopSec=5s\n")
        self.path("/etc/systemd/journald.conf").write_text("[Journal]\nStorage=volatile\nReadKMsg=no\n")

    # Power

    def boot(self):
        """Returns when all that is enabled has been started, or has failed."""
        self.boots += 1
        for group in self.groups:
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # without them nothing may be in it
                if (group / name).exists():
                    (group / name).write_text((group.parent / name).read_text())
        (self.home / "hierarchies").write_text("".join(f"{name} {kind} {options}\n" for name, kind, options in self._hierarchies().values()))

        def join():
            for group in self.groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        words = ["bash", "-euc", BOOT, "boot", self.home, SYSTEMD, " ".join(DEVICES), " ".join(map(str, self.places))]
        command = ["unshare", "--fork", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--kill-child", *map(str, words)]
        with open(self.lab.dir / f"boot-{self.boots}.log", "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=join)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            first = children.read_text().split()
            if first and os.readlink(f"/proc/{first[0]}/exe").endswith("/systemd"):
                self._first = int(first[0])
                if self.systemctl("is-system-running", ok=None).stdout.strip() in ("running", "degraded"):
                    return
            time.sleep(0.1)
        jobs = self.systemctl("list-jobs", ok=None).stdout if self._first else ""
        raise Failure(f"the machine does not boot:\n{tail((self.lab.dir / f'boot-{self.boots}.log').read_text())}{tail(jobs)}")

    def cut(self):
        """Its power is cut."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self._gone()

    def shut_down(self):
        """It is shut down in order; returns the seconds that took."""
        start = time.monotonic()
        os.kill(self._first, signal.SIGRTMIN + 4)  # to systemd: poweroff.target
        try:
            self._gone()
        except subprocess.TimeoutExpired:
            raise Failure(f"the machine does not shut down within {PATIENCE} s") from None
        return time.monotonic() - start

    def _gone(self):
        self._process.wait(PATIENCE)
        self._process = self._first = None

    def _end(self):
        if self._first:
            self.cut()
        elif self._process:
            self._process.kill()
        deadline = time.monotonic() + 10
        for group in self.groups:
            for directory, _, _ in os.walk(group, topdown=False):
                while Path(directory).exists() and time.monotonic() < deadline:
                    with contextlib.suppress(OSError):  # the kernel is still about it
                        os.rmdir(directory)
                        break
                    time.sleep(0.05)

    @staticmethod
    def _hierarchies():
        """{our group: (directory, type, options)} of the control groups of this machine."""
        mine = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, group = line.split(":", 2)
            mine[controllers] = group.lstrip("/")
        found = {}
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, place, kind, options = line.split()[:4]
            place = Path(place)
            if not place.is_relative_to(CGROUPS) or kind not in ("cgroup", "cgroup2"):
                continue
            names = [option for option in options.split(",") if option in mine or option.startswith("name=")]
            key = "" if kind == "cgroup2" else ",".join(names)
            if key in mine:
                shown = "rw" if kind == "cgroup2" else ",".join(["none" for name in names if name.startswith("name=")] + names)
                found[place / mine[key]] = (str(place.relative_to(CGROUPS)), kind, shown)
        return found

    # Commands

    def run(self, *command, ok=(0,)):
        """Runs a command on it; returns what `lab.run` does."""
        return self.lab.run("nsenter", "-t", self._first, "-m", "-p", "-u", "-i", "-C", "-r", "-w", "--", *command, ok=ok)

    def systemctl(self, *words, ok=(0,)):
        """Asks its systemd."""
        return self.run("systemctl", "--no-pager", *words, ok=ok)

    def start(self, unit):
        """Starts a unit; a Failure has what it logged."""
        if self.systemctl("start", unit, ok=None).returncode != 0:
            raise Failure(f"{unit} does not start:\n{tail(self.journal(unit))}")

    def shows(self, unit, property):
        """A property of a unit."""
        return self.systemctl("show", "--value", "--property", property, unit).stdout.strip()

    def is_active(self, unit):
        """Whether a unit runs."""
        return self.shows(unit, "ActiveState") == "active"

    def main_process(self, unit):
        """The process ID of a unit, as this machine has it."""
        return int(self.shows(unit, "MainPID"))

    def kill(self, unit, number=signal.SIGKILL):
        """Sends a signal to the process of a unit."""
        process = self.main_process(unit)
        if not process:  # to kill(1) that is everybody in its group
            raise Failure(f"{unit} does not run:\n{self.systemctl('status', unit, ok=None).stdout}")
        self.run("kill", f"-{int(number)}", process)

    def journal(self, unit):
        """What a unit has logged since the last boot."""
        return self.run("journalctl", "--no-pager", "--output", "cat", "--unit", unit).stdout

    def has(self, path):
        """Whether a path is there; what hangs is not."""
        return self.run("timeout", "10", "stat", path, ok=None).returncode == 0
