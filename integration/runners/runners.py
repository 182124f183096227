#!/usr/bin/env python3
"""Programs that run any root directory, on flat images of a mounted repository: a bundle of runc, bubblewrap, an overlay as of systemd-nspawn.

  make test-runners
  integration/runners/runners.py --bin target/debug --smoke

None of them reads an image's config; here it is translated once, as documented in README.md. What the program of an image prints and the tree
that it sees are compared with what the image says. Needs root; prints a line for each step and a table at the end.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "integration"))
import images
import lab as laboratory
import registry
from containerd import ENGINES
from flat import Site, differences, end, process_of
from lab import Failure, Lab
from steps import Steps
from table import Table
from words import CASES, Words, started, unlike

FQRN = "images.example.org"
USER = 20_000
HOME = Path("/home/visitor")  # where an ordinary user has his bundles
IMAGES = ["entrypoint-and-cmd", "cmd", "shell-cmd", "environment", "odd-variables", "shell-names", "search-path", "no-search-path", "no-shell"]
SHORT = ["entrypoint-and-cmd", "environment"]
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOREVER = "1234567"
SMALL = "unused-5"  # of those that unused makes, the one that nobody needs with the registry down


class Process:
    """What to start, from an image's config: `words` replace its command."""

    def __init__(self, config, words=(), user=None):
        self.args = [*(config.get("Entrypoint") or []), *(words or config.get("Cmd") or [])]
        self.env = {"PATH": SEARCH_PATH} | dict(variable.split("=", 1) for variable in config.get("Env") or [] if "=" in variable)
        self.cwd = config.get("WorkingDir") or "/"
        self.user, self.group = user or tuple(int(part) for part in (config.get("User") or "0:0").split(":"))


class Runner(Steps):
    """One program, called by root or by an ordinary user."""

    writable, changes_user, user = False, False, False

    def __init__(self, lab, table, site, name):
        super().__init__(lab, table, name)
        self.site, self.starts = site, 0

    def flat(self, image):
        """The directory to run: that of an image, or any other."""
        return image if isinstance(image, Path) else self.site.image(FQRN, image).resolve()

    def command(self, image, process):
        """The command line."""
        raise NotImplementedError

    def run(self, image, process, ok=(0,)):
        """Runs a process to its end; output is bytes."""
        command = [str(word) for word in self.command(image, process)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/")
        if ok is not None and done.returncode not in ok:
            raise Failure(f"status {done.returncode} from {self.engine}, {image}: {done.stderr.decode(errors='replace').strip()[-800:]}")
        return done

    def output(self, image, *words, ok=(0,), **settings):
        """The output of a program of an image."""
        return self.run(image, Process({"Env": ["PATH=/bin"], "Entrypoint": words}, **settings), ok).stdout.decode()

    @contextlib.contextmanager
    def running(self, image):
        """The root directory of a program that goes on running, seen from outside."""
        command = [str(word) for word in self.command(image, Process({"Env": ["PATH=/bin"], "Entrypoint": ["sleep", FOREVER]}))]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/") as process:
            pid = None
            try:
                pid = process_of(["sleep", FOREVER])
                yield Path(f"/proc/{pid}/root")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid or process.pid, 9)
                process.wait(15)


class Runc(Runner):
    """A bundle: the specification that runc itself proposes, with the image's root and process."""

    def __init__(self, lab, table, site, user):
        super().__init__(lab, table, site, "runc user" if user else "runc root")
        self.user, self.changes_user, self.home = user, not user, HOME / "runc" if user else lab.path("runc")
        self.home.mkdir(exist_ok=True)
        self.become = as_user() if user else []
        if user:
            os.chown(self.home, USER, USER)

    def command(self, image, process):
        self.starts += 1
        bundle = self.home / str(self.starts)
        self.lab.run(*self.become, "mkdir", bundle)
        self.lab.run(*self.become, "runc", "spec", *(["--rootless"] if self.user else []), "--bundle", bundle)
        specification = json.loads((bundle / "config.json").read_text())
        specification["root"] = {"path": str(self.flat(image)), "readonly": True}
        specification["process"] |= {"terminal": False, "args": process.args, "cwd": process.cwd}
        specification["process"] |= {"env": [f"{name}={value}" for name, value in process.env.items()]}
        specification["process"]["user"] = {"uid": process.user, "gid": process.group}
        specification["process"]["noNewPrivileges"] = False
        (bundle / "config.json").write_text(json.dumps(specification))
        name = f"{'user' if self.user else 'root'}-{os.getpid()}-{self.starts}"
        return [*self.become, "runc", "--root", self.home / "state", "run", "--bundle", bundle, name]


class Bubblewrap(Runner):
    """bwrap with the image as a read-only root; the program stays its caller's."""

    def __init__(self, lab, table, site, user):
        super().__init__(lab, table, site, "bwrap user" if user else "bwrap root")
        self.user, self.become = user, as_user() if user else []

    def command(self, image, process):
        mounts = ["--ro-bind", self.flat(image), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-all", "--die-with-parent"]
        environment = [word for name, value in process.env.items() for word in ("--setenv", name, value)]
        who = ["--uid", process.user, "--gid", process.group] if self.user else []
        return [*self.become, "bwrap", *mounts, *who, "--clearenv", *environment, "--chdir", process.cwd, "--", *process.args]


class Overlay(Runner):
    """enter.py: what systemd-nspawn --volatile=overlay does."""

    writable, changes_user = True, True

    def __init__(self, lab, table, site):
        super().__init__(lab, table, site, "overlay, pivot_root")
        self.home = lab.path("overlay")

    def command(self, image, process):
        self.starts += 1
        file = self.home / f"{self.starts}.json"
        file.write_text(json.dumps({"root": str(self.flat(image))} | vars(process)))
        return [sys.executable, "-I", Path(__file__).parent / "enter.py", file]


def as_user():
    """Words before a command that make it an ordinary user's."""
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return ["env", "-i", *become, "env", f"HOME={HOME}", f"XDG_RUNTIME_DIR={HOME}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


# The steps


def words(runner, names):
    """The program starts with the words and the environment of the config."""
    with runner.step("words and environment of the config"):
        for name in names:
            for more in CASES[name].starts:
                found = started(runner.run(name, Process(runner.site.config(FQRN, name), more)).stdout)
                process = Process(CASES[name].config, more)
                what = f"{name} {[word[:12] for word in more][:3]}"
                if name == "shell-cmd" and not more:
                    runner.equal(f"{what}: words", found.words, ["words", images.GREETING, *images.GREETING.split()])
                else:
                    runner.none(f"{what}: words", unlike(process.args, found.words))
                for key in {"PWD", *({"HOME", "SHLVL"} - set(process.env))}:  # set by runners and by the shell
                    process.env.pop(key, None), found.environment.pop(key, None)
                runner.none(f"{what}: variables", unlike(process.env, found.environment))


def tree(runner, _):
    """The program sees the image's tree."""
    with runner.step("correct file tree"), runner.running("twelve") as root:
        runner.none("differences", differences(runner.site.layouts["twelve"], root, ["tmp"]))


def rights(runner, _):
    """Who may do what."""
    with runner.step("users, rights, writing"):
        in_directory = {"Env": ["PATH=/bin"], "Entrypoint": ["cat", "old"], "WorkingDir": "/opt/odd"}
        runner.equal("working directory", runner.run("twelve", Process(in_directory)).stdout, b"from 1970\n")
        expected = "0 can't read\n" if runner.user else "0 can read\n"
        runner.equal("who is root only for himself can't read a secret, root can", runner.output("twelve", "who", "/opt/odd/secret"), expected)
        if runner.changes_user:
            nobody = {"user": (65534, 65534)}
            runner.equal("nobody can't read it", runner.output("twelve", "who", "/opt/odd/secret", **nobody), "65534 can't read\n")
            runner.equal("a set-user-id program can", runner.output("twelve", "/opt/odd/set-user-id", "/opt/odd/secret", **nobody), "0 can read\n")
        change = "cd /opt/odd && echo more >>link-a && rm symlink && mv owned moved && cat link-a"
        done = runner.run("twelve", Process({"Env": ["PATH=/bin"], "Entrypoint": ["sh", "-c", change]}), ok=None)
        runner.equal("writing", (done.returncode == 0, done.stdout), (True, b"two names, one file\nmore\n") if runner.writable else (False, b""))
        runner.equal("the published files are as before", (runner.flat("twelve") / "opt/odd/link-a").read_text(), "two names, one file\n")
        runner.equal("a status", runner.run("twelve", Process({"Env": ["PATH=/bin"], "Entrypoint": ["sh", "-c", "exit 7"]}), ok=None).returncode, 7)


def client_restart(runner, _):
    """A new start needs nothing of the client that was there before."""
    with runner.step("cvmfs-client: kill -9, mounted again"):
        runner.equal("before", runner.output("twelve", "cat", "/opt/odd/old"), "from 1970\n")
        runner.check("there was a client", runner.site.kill_client(FQRN))
        runner.site.mount(FQRN, f"again-{runner.number}")
        runner.equal("after", runner.output("twelve", "cat", "/opt/odd/old"), "from 1970\n")


def first_output(runner, _):
    """Seconds from an empty cache to the first output, beside an ordinary pull that is unpacked first."""
    with runner.step("seconds to first output") as cell:
        process = Process({"Env": ["PATH=/bin"], "Entrypoint": ["cat", "/opt/unused"]})
        plain = runner.lab.path(f"plain-{runner.number}")
        start = time.monotonic()
        root = registry.Image(f"http://{runner.site.reference(SMALL)}").pull_and_unpack(plain)
        ordinary = time.monotonic() - start + runner.lab.first_output(*runner.command(root, process))
        runner.site.unmount(FQRN)
        start = time.monotonic()
        runner.site.mount(FQRN, f"cold-{runner.number}")
        seconds = time.monotonic() - start + runner.lab.first_output(*runner.command(SMALL, process))
        cell.text = f"{seconds:.2f} s; unpacked {ordinary:.2f} s"


def registry_down(runner):
    """No start needs the registry."""
    with runner.step("works with the registry down"):
        runner.equal("an image that never ran", runner.output(f"unused-{runner.number}", "cat", "/opt/unused"), f"unused-{runner.number}\n")


def unused(lab, words, count):
    """Images that are left alone until the registry is down."""
    made = {}
    for number in range(count):
        layout = images.Layout(lab.dir / f"unused-{number}")
        layout.begin_with(words.stack.layout("one"))
        with layout.layer() as layer:
            layer.directory("opt")
            layer.add("opt/unused", content=f"unused-{number}\n".encode())
        layout.finish("1")
        made[f"unused-{number}"] = layout.directory
    return made


def scenario():
    args = arguments()
    table, names = Table(args.table), SHORT if args.smoke else IMAGES
    with Lab(os.environ.get("DEMO_DIR", ROOT / "target/demo")) as lab:
        begin = time.monotonic()
        made = Words(lab.home, ENGINES)
        home = lab.path("home")
        os.chown(home, USER, USER)
        lab.place(HOME, home)
        lab.place("/cvmfs", lab.path("cvmfs"))
        layouts = {name: made.layout(name) for name in names} | {"twelve": made.stack.layout("twelve")} | unused(lab, made, 6)
        site = Site(lab, args.bin, layouts, {FQRN: []})
        site.mount(FQRN)
        print(f"images published in {time.monotonic() - begin:.1f} s")
        print("; ".join(lab.run(program, "--version").stdout.splitlines()[0] for program in ("runc", "bwrap")) + "\n")
        runners = [Runc(lab, table, site, False), Runc(lab, table, site, True), Bubblewrap(lab, table, site, False)]
        runners += [Bubblewrap(lab, table, site, True), Overlay(lab, table, site)]
        for number, runner in enumerate(runners):
            runner.number = number
            for step in (words, tree, rights, *(() if args.smoke else (client_restart, first_output))):
                step(runner, names)
        end("docker-registry")
        for runner in runners:
            registry_down(runner)
        print(f"\n{table.text()}")
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=ROOT / "target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--smoke", action="store_true", help="fewer images of the table")
    parser.add_argument("--table", help="a file to which the table's cells are added")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
