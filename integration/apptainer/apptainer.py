#!/usr/bin/env python3
"""Apptainer runs images of a mounted repository, as root and as an ordinary user, and what it starts is what Docker would start.

  make test-apptainer
  integration/apptainer/apptainer.py --bin target/debug --smoke

Images go from a real registry into a repository that is mounted below /cvmfs. Entry points, commands, variables and arguments that are hard
to pass on are the table of `words.py`; Docker runs the same images in the same run, and both have to start the same words in the same
environment. Needs root; prints a line for each step and a table at the end.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "integration"))
import images
import lab as laboratory
import registry
from containerd import ENGINES, within
from flat import Site, differences, end, process_of
from installed import HOMES, MAPPED, USER_ID, WAYS, Apptainer
from judge import Docker
from lab import Failure, Lab
from steps import Steps
from table import Table
from words import CASES, HOSTILE, Words, started, unlike

KEEP, READABLE = "images.example.org", "readable.example.org"
DATA = Path("/home/visitor-data")
LATE = 1_000_000  # bytes of a file that is read late

# Images of the table for the short pass, and how many starts of each.
SMOKE = {"entrypoint-and-cmd": 2, "shell-cmd": 1, "environment": 1, "no-shell": 1}

# What Apptainer puts over the image by default.
BOUND = ("etc/group", "etc/hosts", "etc/localtime", "etc/passwd", "etc/resolv.conf", "home", "root", "tmp", "var/tmp")

# Variables that every start by Apptainer has.
ADDED = re.compile("(APPTAINER|SINGULARITY)_.*|HOME|LANG|LD_LIBRARY_PATH|PATH|PROMPT_COMMAND|PS1|PWD|SHLVL|TERM|USER_PATH")
SEARCH_PATH = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]

# Variables that Docker passes and Apptainer's interpreter can't: it has its own of some names, and others are none for a shell.
NOT_PASSED = {"HOME", "PWD", "LD_LIBRARY_PATH", "IFS", "OPTIND", "PPID", "PS1", "UID", "EUID", "GID", "a.b", "1st", "a-b"}

LABELS = {"org.example.quote": "it's \"$HOME\"", "org.example.lines": "one\ntwo", "empty": ""}


class Case(Steps):
    """Apptainer called in one way."""

    def __init__(self, site, words, table, apptainer, way, expected):
        super().__init__(site.lab, table, f"apptainer {way}")
        self.number = list(WAYS).index(way)
        self.unused = f"unused-{self.number}"  # an image that is left alone until the registry is down
        self.site, self.words, self.apptainer, self.way, self.expected = site, words, apptainer, way, expected

    def image(self, name, fqrn=KEEP):
        """The path of an image."""
        return self.site.image(fqrn, name)

    def __call__(self, verb, *words, environment=(), ok=(0,)):
        """Runs Apptainer; its output as text."""
        done = self.apptainer(self.way, verb, *words, environment=environment, ok=ok)
        return done.stdout.decode(errors="surrogateescape")

    def sh(self, name, script, *options, fqrn=KEEP, ok=(0,)):
        """The output of a shell in an image."""
        return self("exec", *options, self.image(name, fqrn), "/bin/sh", "-c", script, ok=ok)

    def fails(self, name, script, *options, **more):
        """Whether a shell in an image ends with a status other than 0."""
        return self.apptainer(self.way, "exec", *options, self.image(name, **more), "/bin/sh", "-c", script, ok=None).returncode != 0

    @contextlib.contextmanager
    def running(self, name, script, *options, fqrn=KEEP):
        """A shell in an image that goes on running, once it has printed its first line."""
        command = self.apptainer.command(self.way, "exec", *options, self.image(name, fqrn), "/bin/sh", "-c", script)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                first = process.stdout.readline()
                if not first:
                    raise Failure(f"apptainer exec {name} as {self.way}: {process.stderr.read()[-1000:]}")
                yield process, first
            finally:
                process.kill()

    def same_start(self, name, words, found, expected):
        """Checks that a start is the one that Docker made."""
        what = f"{name} {[word[:12] for word in words][:3]}"
        self.none(f"{what}: words", unlike(expected.words, found.words))
        names = {variable.split("=")[0] for variable in CASES[name].config.get("Env", [])} - {"PATH"}
        wanted, passed = ({key: value for key, value in start.environment.items() if key in names} for start in (expected, found))
        excused = {key for key in names & NOT_PASSED if wanted.get(key) != passed.get(key)}
        self.equal(f"{what}: variables that can't be passed", excused, names & NOT_PASSED)
        for key in excused:
            wanted.pop(key, None), passed.pop(key, None)
        self.none(f"{what}: variables", unlike(wanted, passed))
        missing = [place for place in SEARCH_PATH if place not in expected.environment["PATH"].split(":")]
        self.equal(f"{what}: the search path, then Apptainer's", found.environment["PATH"], ":".join([expected.environment["PATH"], *missing]))
        others = sorted(key for key in found.environment if key not in names and not ADDED.fullmatch(key))
        self.check(f"{what}: no other variable", not others, others)


# The steps


def run(case):
    """`apptainer run` starts what `docker run` starts."""
    with case.step("run: words and environment as Docker's"):
        for (name, words), expected in case.expected.items():
            found = case.apptainer(case.way, "run", case.image(name), *words)
            case.same_start(name, words, started(found.stdout), expected)
        done = case.apptainer(case.way, "run", case.image("neither"), ok=None)
        case.check("nothing to run is an error that says so", done.returncode != 0 and "names no command" in done.stderr, done.stderr)


def execute(case):
    """`apptainer exec` starts the user's words, in the environment of the image."""
    with case.step("exec: words and environment as Docker's"):
        for (name, words), expected in case.expected.items():
            if words == ():
                program = "/words" if CASES[name].base == "empty" else "/bin/words"
                found = started(case.apptainer(case.way, "exec", case.image(name), program, *HOSTILE).stdout)
                case.same_start(name, words, found, expected._replace(words=[program, *HOSTILE]))
        by_tag, by_digest = (case("exec", path, "cat", "/opt/odd/link-a") for path in (case.image("twelve"), case.image("twelve").resolve()))
        case.equal("the same image by its own path", by_digest, by_tag)


def user_variables(case):
    """Whose variables win."""
    with case.step("--env, --cleanenv, the user's variables"):
        show = 'echo "$V2|$MINE"'
        user = {"environment": ["V2=of the user", "MINE=it's"]}
        image = lambda *options: ("exec", *options, case.image("environment"), "/bin/sh", "-c", show)
        case.equal("the image's win, others are passed", case(*image(), **user), "one two|it's\n")
        case.equal("--cleanenv passes none", case(*image("--cleanenv"), **user), "one two|\n")
        case.equal("--env wins", case(*image("--env", "V2=asked for", "--env", "MINE=2 words"), **user), "asked for|2 words\n")
        case.equal("so does APPTAINERENV_…", case(*image(), environment=["APPTAINERENV_V2=asked for"]), "asked for|\n")


def tree(case):
    """What runs sees the image's tree."""
    with case.step("correct file tree"):
        # Only root as such can read all of an image whose files are not all readable.
        fqrn = KEEP if case.way == "root" else READABLE
        with case.running("twelve", "echo up; exec sleep 1234567", "--contain", "--no-mount", "/etc/localtime", fqrn=fqrn):
            pid = process_of(["sleep", "1234567"])
            # A user namespace has no view of capabilities that were given outside of it.
            ignored = () if fqrn == KEEP else ("capability",)
            case.none("differences", differences(case.site.layouts["twelve"], f"/proc/{pid}/root", BOUND, fqrn == READABLE, ignored))


def labels(case):
    """`apptainer inspect` knows the config."""
    with case.step("labels, working directory, user"):
        found = json.loads(case("inspect", "--json", "--labels", case.image("labels")))["data"]["attributes"]["labels"]
        recorded = {"io.cvmfs.image.working-dir": "/opt/odd dir", "io.cvmfs.image.user": "1000:1001"}
        case.equal("labels", found, LABELS | recorded)
        case.check("inspect --labels", "org.example.quote: it's \"$HOME\"\n" in case("inspect", "--labels", case.image("labels")))
        case.check("inspect --runscript", "'words'" in case("inspect", "--runscript", case.image("labels")))
        user = USER_ID if case.way == "user" else 0
        case.equal("they are not applied", case.sh("labels", "id -u; pwd"), f"{user}\n{HOMES[user]}\n")


def mount_points(case):
    """All that has to be there for mounts is, also where Apptainer can't add any."""
    with case.step("mount points, without overlay or underlay"):
        configuration = case.apptainer.configuration
        text = configuration.read_text()
        without = re.sub(r"(?m)^enable (overlay|underlay) = .*$", r"enable \1 = no", text)
        case.equal("settings that were changed", sum(a != b for a, b in zip(text.splitlines(), without.splitlines())), 2)
        places = {"/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/etc/hosts", "/etc/resolv.conf", "/cvmfs", "/srv"}
        places |= {"/home/visitor"} if case.way == "user" else {"/root"}
        configuration.write_text(without)
        try:
            for name in ("twelve", "bare"):
                mounted = case.sh(name, "cat /proc/self/mounts; ls /srv /cvmfs", "--bind", f"/cvmfs,{DATA}:/srv")
                found = {line.split()[1] for line in mounted.splitlines() if line.count(" ") >= 5}
                case.equal(f"{name}: what is mounted", places - found, set())
                case.equal(f"{name}: the root is the repository's", mounted.split()[1:3], ["/", "fuse"])
                case.check(f"{name}: what is mounted is seen", f"\n{KEEP}\n" in mounted and "\ngiven\n" in mounted, mounted)
        finally:
            configuration.write_text(text)


def options(case):
    """Options that batch systems use."""
    with case.step("--contain, --bind, --pwd, --writable-tmpfs"):
        case.equal("--bind DIR", case.sh("twelve", f"cat {DATA}/given", "--bind", DATA), "by the user\n")
        case.equal("--bind DIR:PLACE that isn't there", case.sh("twelve", "cat /new/place/given", "--bind", f"{DATA}:/new/place"), "by the user\n")
        case.equal("--bind to a file", case.sh("twelve", "cat /opt/odd/old", "--bind", f"{DATA}/given:/opt/odd/old"), "by the user\n")
        case.equal("--pwd", case.sh("twelve", "pwd; cat link-a", "--pwd", "/opt/odd"), "/opt/odd\ntwo names, one file\n")
        empty = case.sh("twelve", "ls -A /tmp /var/tmp; touch /tmp/x && echo written", "--contain")
        case.equal("--contain: nothing of the machine is in /tmp", empty, "/tmp:\n\n/var/tmp:\nwritten\n")
        case.equal("--writable-tmpfs", case.sh("twelve", "cat /opt/odd/old", "--writable-tmpfs"), "from 1970\n")
        nested = case.sh("twelve", f"cat {case.image('twelve')}/opt/odd/old", "--bind", "/cvmfs")
        case.equal("--bind /cvmfs: the repositories in a container", nested, "from 1970\n")
        if case.way != "user":  # who can change nothing, for the directories are root's
            change = "cd /opt/odd && echo more >>link-a && rm symlink && mv old moved && cat link-a && ls"
            case.check("root can't change the image", case.fails("twelve", change))
            shown = case.sh("twelve", change, "--writable-tmpfs").splitlines()
            changed = shown[:2] == ["two names, one file", "more"] and "moved" in shown and "symlink" not in shown
            case.check("but with --writable-tmpfs", changed, shown)
        names = " ".join(sorted(os.listdir(case.image("twelve") / "opt/odd")))
        case.equal("the published files are as before", (case.image("twelve") / "opt/odd/link-a").read_text(), "two names, one file\n")
        case.check("and no more of them", "moved" not in names and "symlink" in names, names)


def fakeroot(case):
    """`--fakeroot` makes an ordinary user root of what is his."""
    if case.way == "user":
        with case.step("--fakeroot"):
            found = case.sh("twelve", "id -u; cat /proc/self/uid_map", "--fakeroot").split()
            case.equal("the IDs", found, ["0", *f"0 {USER_ID} 1 1 {MAPPED} 65536".split()])
            change = "touch $HOME/mine && chown 5:6 $HOME/mine && stat -c %u:%g $HOME/mine && rm $HOME/mine"
            case.equal("files can be given away", case.sh("twelve", change, "--fakeroot"), "5:6\n")
            case.check("it gives no rights to files of the image", case.fails("twelve", "cat /opt/odd/secret", "--fakeroot"))


def instance(case):
    """Services: the image's start script, which starts none."""
    with case.step("instance start, exec, stop"):
        case("instance start", case.image("twelve"), "one")
        try:
            case.equal("exec in it", case("exec", "instance://one", "cat", "/opt/odd/old"), "from 1970\n")
        finally:
            case("instance stop", "--timeout", "1", "one")


def rights(case):
    """Files that not everybody may read: reported; as the image has them, or readable, as the operator chooses."""
    with case.step("files that not everybody may read"):
        wanted = {"d": 0o5, "-": 0o4}
        merged = images.merged_tree(case.site.layouts["twelve"])
        secret = {path: about for path, about in merged.items() if wanted.get(about["type"], 0) & ~int(about["mode"] or "0", 8)}
        files = [path for path, about in secret.items() if about["type"] == "-"]
        case.check("there are some of both kinds", {about["type"] for about in secret.values()} == {"d", "-"}, secret)
        for fqrn in (KEEP, READABLE):
            said = [line for line in case.site.said[fqrn].splitlines() if "/lab/twelve:1: " in line and "not readable by everybody" in line]
            report = f"{len(secret)} files or directories of the flat image are not readable by everybody, the first is /"
            case.check(f"{fqrn}: reported", len(said) == 1 and report in said[0] and said[0].rsplit(" /", 1)[1] in secret, said)
        for path in files:
            read = f"cat '/{path}'"
            if case.way == "user":
                case.check(f"kept: {path} can't be read", case.fails("twelve", read))
            if case.way != "root --userns":
                content = (case.image("twelve") / path).read_text()
                case.equal(f"readable: {path} can be read", case.sh("twelve", read, fqrn=READABLE), content)
                if case.way == "root":
                    case.equal(f"kept: root reads {path}", case.sh("twelve", read), content)
        if case.way == "user":
            who = case("exec", case.image("twelve"), "/opt/odd/set-user-id", "/opt/odd/secret")
            case.equal("set-user-id programs have no effect", who, f"{USER_ID} can't read\n")
        wrong = []
        for path, about in merged.items():
            if about["mode"] is not None:
                bits = wanted[about["type"]] * 0o111 if path in secret else 0
                modes = [oct(os.lstat(case.image("twelve", fqrn) / path).st_mode & 0o7777) for fqrn in (KEEP, READABLE)]
                if modes != [about["mode"], oct(int(about["mode"], 8) | bits)]:
                    wrong.append(f"{path}: {about['mode']} in the image, {modes[0]} kept, {modes[1]} readable")
        case.none("modes", wrong)


def moved_tag(case):
    """The tag of a running image moves on: what runs is not disturbed, what starts is new."""
    with case.step("tag is moved while it runs"):
        site, image = case.site, case.image("moving")
        old = int((image / "opt/version").read_text())
        (DATA / "go").unlink(missing_ok=True)
        script = "cat /opt/version; until test -e /srv/go; do sleep 0.1; done; cat /opt/version; wc -c </opt/late; head -n 1 /opt/late"
        with case.running("moving", script, "--bind", f"{DATA}:/srv") as (process, first):
            flat = image.resolve()
            registry.push(moving(case.lab, case.words, old + 1), site.url, "lab/moving", "1")
            outcomes = [wish["outcome"] for wish in site.publish(KEEP)["wishes"]]
            case.equal("one image is published anew", outcomes.count("updated"), 1)
            case.check("the path leads to the new image", within(40, lambda: image.resolve() != flat))
            case.equal("what starts is new", case.sh("moving", "cat /opt/version"), f"{old + 1}\n")
            (DATA / "go").touch()
            rest, _ = process.communicate(timeout=60)
            case.equal("what runs sees its own files, also those that it opens now", first + rest, f"{old}\n{old}\n{LATE}\nversion {old}\n")
            case.equal("it ends well", process.returncode, 0)


def client_restart(case):
    """A new start needs nothing of the client that was there before."""
    with case.step("cvmfs-client: kill -9, mounted again"):
        case.equal("before", case.sh("twelve", "cat /opt/odd/old"), "from 1970\n")
        case.check("there was a client", case.site.kill_client(KEEP))
        case.site.mount(KEEP, f"again-{case.number}")
        case.equal("after", case.sh("twelve", "cat /opt/odd/old"), "from 1970\n")


def first_output(case):
    """Seconds from an empty cache to the first output, beside Apptainer's ordinary way."""
    if case.way == "root --userns":
        return  # its ordinary way needs rights that root lacks here
    with case.step("seconds to first output") as cell:
        start = time.monotonic()
        case("exec", f"docker://{case.site.reference('moving')}", "cat", "/opt/version", environment=["APPTAINER_NOHTTPS=1"])
        ordinary = time.monotonic() - start
        case.site.unmount(KEEP)
        start = time.monotonic()
        case.site.mount(KEEP, f"cold-{case.number}")
        case("exec", case.image("moving"), "cat", "/opt/version")
        cell.text = f"{time.monotonic() - start:.2f} s; docker:// {ordinary:.2f} s"


def registry_down(case):
    """No start needs the registry."""
    with case.step("works with the registry down"):
        case.equal("an image that ran before", case.sh("twelve", "cat /opt/odd/old"), "from 1970\n")
        case.equal("an image that never ran", case.sh(case.unused, "cat /opt/unused"), f"{case.unused}\n")


def server_down(case):
    """What ran once runs without the server of the repository."""
    with case.step("works with the server down, once it ran"):
        found = started(case.apptainer(case.way, "run", case.image("environment")).stdout)
        case.same_start("environment", (), found, case.expected["environment", ()])
        case.equal("another program that was read", case.sh("environment", "echo again"), "again\n")
        case.check("an image that never ran is an error", case.fails("unused", "true"))


STEPS = [run, execute, user_variables, tree, labels, mount_points, options, fakeroot, instance, rights, moved_tag, client_restart, first_output]
SMOKE_STEPS = [run, execute, tree, options, rights]


def moving(lab, words, number):
    """One version of the image whose tag moves."""
    layout = images.Layout(lab.dir / f"moving-{number}")
    layout.begin_with(words.stack.layout("one"))
    with layout.layer() as layer:
        layer.directory("opt")
        layer.add("opt/version", content=b"%d\n" % number)
        layer.add("opt/late", content=(b"version %d\n" % number).ljust(LATE, b"."))
    layout.finish("1", Env=["PATH=/bin"])
    return layout.directory


def layouts(lab, words):
    """All images by name."""
    made = {name: words.layout(name) for name in CASES} | {"twelve": words.stack.layout("twelve"), "moving": moving(lab, words, 1)}
    settings = {"Labels": LABELS, "WorkingDir": "/opt/odd dir", "User": "1000:1001", "Cmd": ["words"]}
    for name in ("labels", "bare", "unused", *(f"unused-{way}" for way in range(len(WAYS)))):
        layout = images.Layout(lab.dir / f"layout-{name}")
        with layout.layer() as layer:
            layer.directory("bin")
            layer.add("bin/busybox", content=(ENGINES / "bookworm/bin/busybox").read_bytes(), mode=0o755)
            for applet in ("cat", "id", "ls", "sh", "true"):
                layer.add(f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
        if name.startswith("unused"):
            with layout.layer() as layer:
                layer.directory("opt")
                layer.add("opt/unused", content=f"{name}\n".encode())
        layout.finish("1", Env=["PATH=/bin"], **(settings if name == "labels" else {}))
        made[name] = layout.directory
    return made


def scenario():
    args = arguments()
    table = Table(args.table)
    with Lab(os.environ.get("DEMO_DIR", ROOT / "target/demo")) as lab:
        begin = time.monotonic()
        apptainer, docker, words = Apptainer(lab, ENGINES), Docker(lab, ENGINES), Words(lab.home, ENGINES)
        lab.place("/cvmfs", lab.path("cvmfs"))
        lab.place(DATA, lab.path("data"))
        (DATA / "given").write_text("by the user\n")
        site = Site(lab, args.bin, layouts(lab, words), {KEEP: [], READABLE: ["--flat-permissions", "readable"]})
        for fqrn in (KEEP, READABLE):
            site.mount(fqrn)
        print(f"images published in {time.monotonic() - begin:.1f} s")

        begin, expected = time.monotonic(), {}
        for name, case in CASES.items():
            starts = case.starts[: SMOKE.get(name, 0)] if args.smoke else case.starts
            if starts:
                docker.pull(site.reference(name))
            for more in starts:
                expected[name, tuple(more)] = started(docker.run(site.reference(name), *more).stdout)
        print(f"{len(expected)} starts by Docker {docker.version()} in {time.monotonic() - begin:.1f} s")
        print(lab.run("apptainer", "--version").stdout)

        cases = [Case(site, words, table, apptainer, way, expected) for way in (["root", "user"] if args.smoke else WAYS)]
        for case in cases:
            for step in SMOKE_STEPS if args.smoke else STEPS:
                step(case)
        end("docker-registry")
        for case in cases:
            registry_down(case)
        for case in cases:
            case.apptainer(case.way, "run", case.image("environment"))
        end("cvmfs-publisher")
        for case in cases:
            server_down(case)
        print(f"\n{table.text()}")
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=ROOT / "target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--smoke", action="store_true", help="the shortest pass that has every kind of thing in it")
    parser.add_argument("--table", help="a file to which the table's cells are added")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
