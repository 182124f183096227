"""What every scenario with real servers needs: processes, mounts and a directory that vanish on every way out, and counted checks.

A scenario runs as the first process of a private mount and PID namespace. Leaving in order stops and unmounts everything by name, last
first; if the scenario is killed instead, the kernel ends the namespace and with it every process and mount in it. Servers listen on free
ports of 127.0.0.1 only. Needs root.
"""

import contextlib
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


class Failure(Exception):
    """Something outside the scenario's control went wrong; the text says what, where and what to do."""


def main(scenario, network=True):
    """Runs `scenario()` in namespaces of its own and exits with its status, or 1 and the text of a Failure.

    Without `network` it also has a network of its own, with nothing but 127.0.0.1 in it.
    """
    enter_namespaces(network)
    try:
        sys.exit(scenario())
    except Failure as failure:
        print(f"Error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def enter_namespaces(network=True):
    """Returns in a child that is process 1 of new mount and PID namespaces; the parent waits for it and passes signals on."""
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root, to mount file systems and to change the root directory: sudo env PATH=\"$PATH\" make …")
    if not os.path.exists("/dev/fuse"):
        lacking.append("/dev/fuse: modprobe fuse, or start the container with --device /dev/fuse")
    lacking += [f"{tool}: make setup" for tool in ("docker-registry", "tar", "unshare", "mount") if not shutil.which(tool)]
    if lacking:
        sys.exit("This can't run here. It lacks\n  " + "\n  ".join(lacking))

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | (0 if network else CLONE_NEWNET)) != 0:
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}; in a container, start it with --privileged")
    child = os.fork()
    if child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(child, number))
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0 or libc.mount(b"proc", b"/proc", b"proc", 0, None) != 0:
        sys.exit(f"mount in a new namespace: {os.strerror(ctypes.get_errno())}")
    if not network:
        with socket.socket() as s:
            fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def configured(file, replacements):
    """The text of a configuration file with other values in it; each of the old ones has to be there."""
    text = Path(file).read_text()
    for old, new in replacements.items():
        if old not in text:
            raise Failure(f"{file} does not say {old!r}: adapt the scenario")
        text = text.replace(old, str(new))
    return text


def free_port():
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Lab:
    """A directory, and whatever is started or mounted for one run; a context manager that undoes all of it."""

    def __init__(self, home):
        self.home = Path(home).resolve()
        self.dir = self.home / "run"
        self.passed, self.failed = 0, []
        self._undo = contextlib.ExitStack()

    def __enter__(self):
        self.home.mkdir(parents=True, exist_ok=True)
        lock = self._undo.enter_context(open(self.home / "lock", "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another run is using {self.home}; wait for it, or set DEMO_DIR to another directory") from None
        shutil.rmtree(self.dir, ignore_errors=True)  # of a run that was killed
        self.dir.mkdir()
        self._undo.callback(shutil.rmtree, self.dir, ignore_errors=True)
        return self

    @contextlib.contextmanager
    def part(self, name):
        """A lab below this one for a part of the run: what is checked there counts here. Says how long it took."""
        start = time.monotonic()
        with Lab(self.home / name) as inner:
            yield inner
        self.passed += inner.passed
        self.failed += inner.failed
        print(f"{name:5} took {time.monotonic() - start:.0f} s", flush=True)

    def __exit__(self, *exception):
        print("cleaning up", file=sys.stderr, flush=True)
        return self._undo.__exit__(*exception)

    def undo(self, function, *arguments):
        """Has something done when the lab ends, before what was asked for earlier."""
        self._undo.callback(function, *arguments)

    def path(self, name):
        """A new directory below the lab's."""
        path = self.dir / name
        path.mkdir(parents=True)
        return path

    # Processes

    def run(self, *command, ok=(0,), **options):
        """Runs a command to its end; returns it with `.stdout` as text. A status not in `ok` (None: any will do) is a Failure."""
        command = [str(word) for word in command]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", **options)
        if ok is not None and done.returncode not in ok:
            raise Failure(f"status {done.returncode} from {shlex.join(command)}\n{tail(done.stdout)}{tail(done.stderr)}")
        return done

    def first_output(self, *command):
        """Runs a command to its end; returns the seconds to the first byte that it prints."""
        command, start = [str(word) for word in command], time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            first = os.read(process.stdout.fileno(), 1 << 16)
            seconds = time.monotonic() - start
            _, errors = process.communicate()
        if process.returncode != 0 or not first:
            raise Failure(f"status {process.returncode} from {shlex.join(command)}\n{tail(errors.decode(errors='replace'))}")
        return seconds

    def serve(self, name, command, port):
        """Starts a server and returns when it accepts connections on `port`; it is stopped with the lab."""
        def accepts():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        return self.start(name, command, accepts, f"does not answer on 127.0.0.1:{port}")

    def start(self, name, command, ready, otherwise, **options):
        """Starts a process and returns when `ready()`, or fails with the words `otherwise`; it is stopped with the lab."""
        log, command = self.dir / f"{name}.log", [str(word) for word in command]
        with open(log, "w") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **options)
        self._undo.callback(self._stop, name, process)
        deadline = time.monotonic() + 20
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{name} {otherwise}: {shlex.join(command)}\n{tail(log.read_text())}")
            time.sleep(0.02)
        return process

    def _stop(self, name, process):
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.check(f"{name} ends within 15 seconds of SIGTERM", False)

    # Mounts

    def place(self, path, content):
        """Shows the directory `content` at an absolute path; the path is made if it isn't there, and removed with the lab."""
        path = Path(path)
        for directory in [*reversed(path.parents), path]:
            made = not directory.exists()
            if made:
                directory.mkdir()
            if made or directory == path:
                # Removing a directory takes away what is mounted on it in all namespaces: whoever uses one holds a lock.
                held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(held, fcntl.LOCK_SH)
                self._undo.callback(self._let_go, directory, held, made)
        return self.mount(path, "mount", "--bind", content, path)

    def _let_go(self, directory, held, made):
        with contextlib.suppress(OSError):  # another run uses it
            if made:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory.rmdir()
        os.close(held)

    def over(self, place, files):
        """Lays files over those of a directory; what is changed there is gone with the lab."""
        changes = self.path(f"changes{place.replace('/', '-')}")
        self.mount(changes, "mount", "-t", "tmpfs", "none", changes)
        for name in ("upper", "work"):
            (changes / name).mkdir()
        # Programs of this run have files in it: it goes when they have ended.
        self.undo(lambda: self.run("umount", "--lazy", place, ok=None))
        options = f"lowerdir={files}:{place},upperdir={changes}/upper,workdir={changes}/work"
        self.run("mount", "-t", "overlay", "overlay", "-o", options, place)

    def mount(self, target, *command):
        """Runs a command that mounts something on `target`; unmounted with the lab, or by calling what this returns."""
        def unmount():
            tries = 20  # what served a mount below this one may need a moment to end and to close its files
            while is_mounted(target) and tries:
                if self.run("umount", target, ok=None).returncode != 0:
                    tries -= 1
                    time.sleep(0.1)
            if is_mounted(target):
                self.check(f"{target} can be unmounted", False)
                self.run("umount", "--lazy", target, ok=None)

        self._undo.callback(unmount)  # before the command: a signal may come between
        self.run(*command)
        if not is_mounted(target):
            raise Failure(f"nothing is mounted on {target} after {shlex.join(map(str, command))}")
        return unmount

    # Checks

    def check(self, name, right, detail=""):
        """Counts one expectation and prints it if it fails."""
        if right:
            self.passed += 1
        else:
            self.failed.append(name)
            print(f"FAILED {name}" + (f"\n    {detail}" if detail else ""), flush=True)

    def equal(self, name, found, expected):
        """Counts the expectation that two values are equal."""
        self.check(name, found == expected, f"expected {expected!r}\n    found    {found!r}")

    def verdict(self):
        """Prints the closing line and returns the exit status."""
        print(f"{self.passed} passed, {len(self.failed)} failed")
        return 1 if self.failed else 0


class Daemon:
    """A program that is started, ended in either way, and started again."""

    def __init__(self, lab, name, command, ready, otherwise):
        self.lab, self.name, self.command, self.ready, self.otherwise = lab, name, command, ready, otherwise
        self.process, self.starts = None, 0

    def start(self):
        """Returns when it is ready."""
        self.starts += 1
        self.process = self.lab.start(f"{self.name}-{self.starts}", self.command, self.ready, self.otherwise)

    def stop(self):
        """Ends it with SIGTERM; returns its exit status."""
        self.process.terminate()
        return self.process.wait(15)

    def kill(self):
        """Ends it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def log(self):
        """What it has printed since its last start."""
        return (self.lab.dir / f"{self.name}-{self.starts}.log").read_text(errors="replace")


def mount_options(path):
    """The options of the mount on a path as the kernel lists them, None if nothing is mounted there."""
    fields = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next((f[5].split(",") for f in reversed(fields) if f[4] == str(path).replace(" ", "\\040")), None)


def is_mounted(path):
    """Whether something is mounted on a path."""
    return mount_options(path) is not None


def settle():
    """The kernel's memory as on a fresh node: what ran before leaves it in pieces, and small pages cost mounts more than local files."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    Path("/proc/sys/vm/compact_memory").write_text("1")


def tail(text, lines=20):
    """The last lines of an output, indented, for a message."""
    return "".join(f"    {line}\n" for line in text.splitlines()[-lines:])


class Relay:
    """A TCP relay in front of a server that counts what passes, so that bytes and requests don't rest on our own figures."""

    def __init__(self, port):
        self.target, self.requests, self.received, self._down = port, 0, 0, False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self):
        """Starts counting from zero."""
        self.requests = self.received = 0

    @contextlib.contextmanager
    def down(self):
        """Whoever connects meanwhile is cut off, as if the server were gone."""
        self._down = True
        try:
            yield
        finally:
            self._down = False

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            if self._down:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the server is down, and for whoever asks so is this
                client.close()
                continue
            for source, sink, up in ((client, server, True), (server, client, False)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, up), daemon=True).start()

    def _pump(self, source, sink, up):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                self._count(data, up)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _count(self, data, up):
        if up:
            self.requests += data.count(b" HTTP/1.1\r\n")
        else:
            self.received += len(data)
