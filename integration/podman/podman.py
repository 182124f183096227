#!/usr/bin/env python3
"""Podman 4 and 5, as root and as an ordinary user, list and run images by name from two additional stores: the node's and the repository's.

  make test-podman
  integration/podman/podman.py --bin target/debug --smoke

Images go from a real registry into a repository that is mounted below /cvmfs; a few of them into its `podmanStore`, others into a store that
`thin-image load --podman-store` makes on the node. What a container starts and sees is compared with what the same Podman makes of the same
image after an ordinary pull. Then the registry ends: images are run, and pulled by their own names and digests through `thin-image mirror`,
without a byte of a layer. Needs root; prints a line for each step and a table at the end.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "integration"))
import images
import lab as laboratory
from containerd import ENGINES, processes, within
from flat import Site, differences, end
from installed import FQRN, OPT, RELEASES, STORE, WAYS, Machine, Podman
from lab import Failure, Lab, free_port
from layers import container_tree
from steps import Steps
from table import Table
from words import CASES, Words, started, unlike

STORED = ("entrypoint-and-cmd", "shell-cmd", "environment", "flat")  # in the repository's store
LOADED = ("twelve", "labels", "entrypoint", "shell-entrypoint", "no-shell")  # in the node's
LATER = ("one", "sixty")  # nowhere at first

# What Podman puts over an image, or into it.
MOUNTED = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "run")
# Variables of every start by Podman.
ADDED = {"HOME", "HOSTNAME", "PATH", "TERM", "container"}


class Case(Steps):
    """One Podman."""

    def __init__(self, site, table, podman, programs):
        super().__init__(site.lab, table, f"podman {podman.release} {podman.way}")
        self.site, self.podman, self.programs, self.count = site, podman, programs, 0
        if podman.way == "user":
            site.lab.undo(self.leave)

    def name(self, image):
        """An image as Podman calls it."""
        return self.site.reference(image)

    def run(self, image, *words, options=(), **more):
        """Runs a container to its end."""
        return self.podman("run", "--rm", *options, self.name(image), *words, **more)

    def output(self, image, *words, **more):
        """What a container prints."""
        return self.run(image, *words, **more).stdout

    def start(self, image, plain=False):
        """A container that goes on running; its name and its root directory, seen from outside."""
        self.count += 1
        name = f"container-{self.count}"
        self.podman("run", "--detach", "--name", name, self.name(image), "sleep", "100000", plain=plain)
        pid = self.podman("inspect", "--format", "{{.State.Pid}}", name, plain=plain).stdout.strip()
        return name, Path(f"/proc/{pid}/root")

    def stop(self, name, plain=False):
        """Removes a container."""
        self.podman("rm", "--force", "--time", "0", name, plain=plain)

    def load(self, *names, remove=False):
        """Puts images into the node's store, or takes them out."""
        words = [self.programs / "thin-image", "load", *(self.site.url + f"/lab/{name}:1" for name in names), "--podman-store", STORE]
        return self.lab.run(*words, *(["--remove"] if remove else ["--repo", FQRN])).stdout

    def mount(self, cache):
        """Mounts the repository for an ordinary user: in the namespace of his containers, where all its files have their owners."""
        if self.podman.way == "user":
            options = ["--server-url", f"http://127.0.0.1:{self.site.ports[FQRN]}/cvmfs/@fqrn@", "--public-key", OPT / f"{FQRN}.pub"]
            self.podman.unshare(OPT / "cvmfs-client", "mount", FQRN, f"/cvmfs/{FQRN}", *options, "--cache", self.podman.home / cache)

    def leave(self):
        """Ends what an ordinary user's namespace is kept by, for it keeps the repository's other mounts as well."""
        self.lab.run(*self.podman.become("podman", "system", "migrate"), ok=None)
        for pid in clients(self):
            os.kill(pid, signal.SIGTERM)

    def unmount(self):
        """The reverse."""
        if self.podman.way == "user":
            self.podman.unshare(OPT / "cvmfs-client", "umount", f"/cvmfs/{FQRN}")
        else:
            self.site.unmount(FQRN)


# The steps


def find(case):
    """`podman images` lists the images of both stores by their names."""
    with case.step("found by name in both stores"):
        listed = json.loads(case.podman("images", "--format", "json").stdout)
        names = {name: image.get("ReadOnly") for image in listed for name in image["Names"] or ()}
        expected = {case.name(image): True for image in STORED + LOADED}
        case.equal("names, all read-only", {name: read_only for name, read_only in names.items()}, expected)
        config = case.site.config(FQRN, "labels")
        found = json.loads(case.podman("image", "inspect", case.name("labels")).stdout)[0]
        case.equal("inspect knows the config", (found["User"], found["Config"]["WorkingDir"]), (config["User"], config["WorkingDir"]))


def ordinary(case, names):
    """The same Podman with the same images, pulled: what the others are compared with."""
    with case.step("ordinary pull, to compare with") as cell:
        cell.text = "downloads"
        for name in names:
            case.podman("pull", "--quiet", "--tls-verify=false", case.name(name), plain=True)


def words(case, names):
    """Containers start what they start after an ordinary pull."""
    with case.step("run: words and environment as after a pull"):
        for name in names:
            for more in [(), ("/words" if CASES[name].base == "empty" else "/bin/words", "a b", "$HOME")]:
                expected, found = (started(case.run(name, *more, plain=plain, text=False).stdout) for plain in (True, False))
                case.none(f"{name} {more}: words", unlike(expected.words, found.words))
                for environment in (expected.environment, found.environment):
                    environment.pop("HOSTNAME", None)  # that of the container
                case.none(f"{name} {more}: variables", unlike(expected.environment, found.environment))


def options(case):
    """User and working directory of the config, and those that are asked for."""
    with case.step("user, working directory, options"):
        case.equal("those of the config", case.output("labels", "sh", "-c", "id -u; id -g; pwd"), "1000\n1001\n/opt/odd dir\n")
        asked = ["--user", "5:6", "--workdir", "/opt", "--env", "A=b c"]
        case.equal("others", case.output("labels", "sh", "-c", 'id -u; pwd; echo "$A"', options=asked), "5\n/opt\nb c\n")
        case.equal("another entry point", case.output("entrypoint", "-c", "echo here", options=["--entrypoint", "sh"]), "here\n")
        case.equal("a status", case.run("twelve", "sh", "-c", "exit 7", ok=None).returncode, 7)
        nobody = ["--user", "65534:65534"]
        case.equal("nobody can't read a secret", case.output("twelve", "who", "/opt/odd/secret", options=nobody), "65534 can't read\n")
        case.equal("a set-user-id program can", case.output("twelve", "/opt/odd/set-user-id", "/opt/odd/secret", options=nobody), "0 can read\n")
        by_digest = json.loads(case.podman("image", "inspect", case.name("twelve")).stdout)[0]["Digest"]
        name = case.name("twelve").rsplit(":", 1)[0]
        found = case.podman("run", "--rm", f"{name}@{by_digest}", "cat", "/opt/odd/old").stdout
        case.equal("the image by its digest", found, "from 1970\n")


def tree(case):
    """A container sees what it sees after an ordinary pull."""
    with case.step("correct file tree"):
        seen = []
        for plain in (True, False):
            name, root = case.start("twelve", plain)
            found = container_tree(root)
            seen.append({path: about for path, about in found.items() if path not in {".", *MOUNTED}})
            case.stop(name, plain)
        if case.podman.way == "user":  # after a pull, what belongs to an ID that the user can't map is given to root
            for one in seen:
                one.pop("opt/odd/high", None)
        case.none("beside the same image, pulled", images.differences(*seen))
        name, root = case.start("flat")
        ignored = () if case.podman.way == "root" else ("owner", "capability")  # seen from outside of the user's namespace
        case.none("flat: beside what the layers say", differences(case.site.layouts["flat"], root, MOUNTED, ignored=ignored))
        case.stop(name)


CHANGES = "cd /opt/stack; rm -r merged; mkdir merged; echo fresh > merged/fresh; rm replaced/new; echo changed >> mode; rm ../odd/link-a"


def changes(case):
    """What is made in a container of a read-only image, and images that are made of it."""
    with case.step("write, diff, commit, run"):
        name, root = case.start("twelve")
        case.podman("exec", name, "sh", "-euc", CHANGES)
        found = set(case.podman("diff", name).stdout.splitlines())
        expected = {"A /opt/stack/merged/fresh", "D /opt/stack/replaced/new", "C /opt/stack/mode", "D /opt/odd/link-a"}
        case.check("diff names what changed", expected <= found, sorted(found))
        above = {f"C {path}" for path in ("/etc", "/opt", "/opt/odd", "/opt/stack", "/opt/stack/replaced")} | {"D /opt/stack/merged"}
        case.equal("and nothing else", found - expected - above, set())
        expected = {path: about for path, about in container_tree(root).items() if path not in {".", *MOUNTED}}
        case.podman("commit", "--quiet", name, "committed:1")
        case.stop(name)
        case.equal("a program of the new image", case.podman("run", "--rm", "committed:1", "cat", "/opt/stack/merged/fresh").stdout, "fresh\n")
        names = case.podman("run", "--rm", "committed:1", "sh", "-c", "ls /opt/stack/merged; cd /opt/odd; test -e link-a || echo gone").stdout
        case.equal("what was removed is not in it", names, "fresh\ngone\n")
        own = case.podman("image", "inspect", "--format", "{{len .RootFS.Layers}}", "committed:1").stdout.strip()
        case.equal("it has one layer more", own, "13")


def build(case):
    """An image built on one of the store shares its layers."""
    with case.step("build FROM it"):
        context = Path(tempfile.mkdtemp(dir="/var/tmp"))
        context.chmod(0o755)
        (context / "file").write_text("copied\n")
        text = f"FROM {case.name('twelve')}\nCOPY file /opt/built/file\nRUN cat /opt/odd/link-b /opt/built/file > /opt/built/run\n"
        (context / "Dockerfile").write_text(text)
        # The images have no history; with it, layers for each instruction work as well.
        case.podman("build", "--quiet", "--layers=false", "--network", "none", "--tag", "built:1", context)
        case.equal("RUN and COPY did", case.podman("run", "--rm", "built:1", "cat", "/opt/built/run").stdout, "two names, one file\ncopied\n")


def push(case):
    """Layers in the repository have no tar with the bytes of the registry's: what is pushed has to be there already."""
    with case.step("push") as cell:
        cell.text = "where layers were pulled from"
        pushed = case.name("pushed")
        case.podman("push", "--quiet", "--tls-verify=false", "committed:1", pushed)
        case.podman("pull", "--quiet", "--tls-verify=false", pushed, plain=True)
        found = case.podman("run", "--rm", pushed, "cat", "/opt/stack/merged/fresh", "/opt/odd/old", plain=True).stdout
        case.equal("what comes back by an ordinary pull", found, "fresh\nfrom 1970\n")
    with case.step("save") as cell:
        cell.text = "no: layers are trees, not tars"
        for image in (case.name("twelve"), "committed:1"):
            archive = Path(f"/var/tmp/{case.podman.release}-{case.podman.way}.tar")
            done = case.podman("save", "--quiet", "--output", archive, image, ok=None)
            case.check(f"save of {image} refuses", done.returncode != 0 and "Digest did not match" in done.stderr, f"status {done.returncode} {done.stderr}")
            archive.unlink(missing_ok=True)


def rootfs(case):
    """`podman run --rootfs` with the path of the image."""
    with case.step("run --rootfs PATH:O"):
        path = f"/cvmfs/{FQRN}/{case.name('twelve')}:O"
        found = case.podman("run", "--rm", "--rootfs", path, "/bin/sh", "-c", "cat /opt/odd/old; echo x > /opt/x && cat /opt/x").stdout
        case.equal("runs, and can be written to", found, "from 1970\nx\n")


def read_only(case):
    """An image of a store can't be removed by a user of it, and Podman says so."""
    with case.step("rmi says that it is read-only"):
        done = case.podman("rmi", case.name("twelve"), ok=None)
        case.check("refused", done.returncode != 0 and "read-only" in done.stderr, done.stderr)
        case.equal("still there", case.output("twelve", "cat", "/opt/odd/old"), "from 1970\n")


class Service:
    """`podman system service`: a program that has the stores open all the time."""

    def __init__(self, case):
        self.socket = case.podman.runtime / "service.sock"
        self.socket.unlink(missing_ok=True)
        command = case.podman.become("podman", "system", "service", "--time", "0", f"unix://{self.socket}")
        self.process = case.lab.start(f"service-{case.podman.release}-{case.podman.way}", command, self.socket.exists, "does not listen")

    def images(self):
        """Names of all images. A request at the moment of a change may find a list without its documents, once."""
        for _ in range(3):
            connection = http.client.HTTPConnection("podman")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.socket))
            connection.request("GET", "/v4.0.0/libpod/images/json")
            answer = connection.getresponse()
            listed = json.loads(answer.read())
            connection.close()
            if answer.status == 200:
                return {name for image in listed for name in image.get("Names") or ()}
            time.sleep(0.5)
        raise Failure(f"podman system service: {listed}")

    def end(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait(15)


def changing(case):
    """A running program sees both stores change."""
    with case.step("a running service sees stores change"):
        service = Service(case)
        try:
            before = service.images()
            case.check("it has the images", case.name("twelve") in before and case.name("flat") in before, before)
            case.load("sixty")
            case.check("the node's store: what is loaded is there", within(30, lambda: case.name("sixty") in service.images()))
            case.equal("it runs", case.output("sixty", "cat", "/opt/layers/last"), "59\n")
            case.load("sixty", remove=True)
            case.check("and is gone when it is taken out", within(30, lambda: case.name("sixty") not in service.images()))
            store(case.site, *STORED, "one")
            case.check("the repository's store: what is published is there", within(30, lambda: case.name("one") in service.images()))
            case.equal("it runs", case.output("one"), images.GREETING + "\n")
            store(case.site, *STORED)
            case.check("and is gone when the list says so", within(30, lambda: case.name("one") not in service.images()))
        finally:
            service.end()


def store(site, *names):
    """Publishes a list that puts these images into the repository's store."""
    repository = site.repositories[FQRN]
    repository.wish(*(f"{site.url}/lab/{name}:1" for name in site.layouts))
    patterns = json.dumps([f"*/lab/{name}:1" for name in names])
    repository.wish_list.write_text(repository.wish_list.read_text() + f"podman: {patterns}\n")
    report = site.publish(FQRN)
    found = {wish["image"].rsplit("/", 1)[1].removesuffix(":1") for wish in report["wishes"] if wish.get("podman", {}).get("outcome") in ("added", "unchanged")}
    if found != set(names):
        raise Failure(f"in the store are {sorted(found)}, not {sorted(names)}: {report}")
    return report


def taken_out(case):
    """Images are taken out of the store, or the store goes, while a container of them runs."""
    with case.step("store is removed under a container"):
        name, _ = case.start("twelve")
        case.load("twelve", remove=True)
        try:
            case.equal("the container goes on", case.podman("exec", name, "cat", "/opt/odd/link-a").stdout, "two names, one file\n")
            case.podman("kill", name)
            case.podman("wait", name)
            again = case.podman("start", name, ok=None)
            case.check("to start it again is an error", again.returncode != 0 and again.stderr.strip(), again.stderr)
        finally:
            case.load("twelve")
        case.podman("start", name)
        case.equal("once it is back, the container starts", case.podman("exec", name, "cat", "/opt/odd/link-a").stdout, "two names, one file\n")
        case.stop(name)


def client_restart(case):
    """The client is killed and mounted again."""
    with case.step("cvmfs-client: kill -9, mounted again"):
        name, _ = case.start("twelve")
        for pid in (found := clients(case)):
            os.kill(pid, signal.SIGKILL)
        case.check("there was a client", found)
        lost = case.podman("exec", name, "cat", "/opt/odd/old", ok=None)
        case.check("what ran has lost its files", lost.returncode != 0, lost.stdout)
        if case.podman.way == "root":
            case.lab.run("umount", "--lazy", f"/cvmfs/{FQRN}")
            case.site.mount(FQRN, f"again-{case.podman.release}")
        else:
            case.podman.unshare("umount", "--lazy", f"/cvmfs/{FQRN}")
        case.mount("again")
        case.stop(name)
        case.equal("what starts has them", case.output("twelve", "cat", "/opt/odd/old"), "from 1970\n")


def clients(case):
    """Process IDs of the case's clients: of its user, and with a cache of its own if other cases have the same user."""
    ours = lambda command: case.podman.way == "root" or any(word.startswith(f"{case.podman.home}/") for word in command)
    found = [pid for pid, command in processes() if command[0].endswith("cvmfs-client") and FQRN in command and ours(command)]
    return [pid for pid in found if os.stat(f"/proc/{pid}").st_uid == case.podman.user]


def first_output(case):
    """Seconds from an empty cache to the first output, beside an ordinary pull and start."""
    with case.step("seconds to first output") as cell:
        case.podman("rmi", "--force", "--all", plain=True)
        begin = time.monotonic()
        case.run("twelve", options=["--tls-verify=false"], plain=True)
        ordinary = time.monotonic() - begin
        case.unmount()
        begin = time.monotonic()
        if case.podman.way == "root":
            case.site.mount(FQRN, f"cold-{case.podman.release}")
        case.mount("cold")
        case.run("twelve")
        cell.text = f"{time.monotonic() - begin:.2f} s; pull {ordinary:.2f} s"


def registry_down(case, mirror):
    """Nothing that is in a store needs the registry; what is pulled comes from the mirror, its layers from the store."""
    with case.step("run, registry down"):
        case.equal("from the node's store", case.output("twelve", "cat", "/opt/odd/old"), "from 1970\n")
        case.check("from the repository's store", started(case.run("environment", text=False).stdout).words)
    with case.step("pull by name and digest, registry down") as cell:
        cell.text = "no layer copied"
        name = case.name("twelve")
        digest = json.loads(case.podman("image", "inspect", name).stdout)[0]["Digest"]
        layers = lambda: {path.name for path in Path(case.podman.graph, "overlay").iterdir()} - {"l", "tempdirs"}
        case.podman("rmi", "--force", "committed:1", "built:1", ok=None)
        before = layers()
        for reference in (name, f"{name.rsplit(':', 1)[0]}@{digest}"):
            case.podman("pull", "--quiet", reference)
            case.equal(f"{reference} runs", case.podman("run", "--rm", reference, "cat", "/opt/odd/old").stdout, "from 1970\n")
        case.equal("layers in Podman's own store", layers() - before, set())
        done = case.podman("pull", "--quiet", case.name("nothing"), ok=None)
        case.check("what is not published is an error", done.returncode != 0, done.stdout)
        case.podman("pull", "--quiet", case.name("one"))
        case.equal("an image whose layers others have", case.podman("run", "--rm", case.name("one")).stdout, images.GREETING + "\n")
        done = case.podman("pull", "--quiet", case.name("sixty"), ok=None)
        case.check("one with layers that are in no store is an error", done.returncode != 0, done.stdout)
        case.load("sixty")
        case.podman("pull", "--quiet", case.name("sixty"))
        case.equal("until it is loaded", case.podman("run", "--rm", case.name("sixty"), "cat", "/opt/layers/last").stdout, "59\n")
        case.podman("rmi", "--force", case.name("sixty"), case.name("one"), name)
        case.load("sixty", remove=True)


STEPS = [find, options, tree, changes, build, push, rootfs, read_only, changing, taken_out, client_restart, first_output]
SMOKE_STEPS = [find, options, tree, rootfs, read_only]


def layouts(lab, made):
    """All images by name."""
    settings = {"Labels": {"a": "b"}, "WorkingDir": "/opt/odd dir", "User": "1000:1001", "Env": ["PATH=/bin"]}
    labels = images.Layout(lab.dir / "labels")
    labels.begin_with(made.stack.layout("one"))
    with labels.layer() as layer:
        layer.directory("opt/odd dir")
    labels.finish("1", **settings)
    # The same tree as `twelve`, but another image.
    flat = images.Layout(lab.dir / "flat")
    flat.begin_with(made.stack.layout("twelve"))
    flat.finish("1", Env=["PATH=/bin", "FORM=flat"])
    known = {"labels": labels.directory, "flat": flat.directory}
    stack = {name: made.stack.layout(name) for name in ("one", "twelve", "sixty")}
    return {name: known.get(name) or stack.get(name) or made.layout(name) for name in (*STORED, *LOADED, *LATER)}


def scenario():
    args = arguments()
    table, binaries = Table(args.table), Path(args.bin).resolve()
    with Lab(os.environ.get("DEMO_DIR", ROOT / "target/demo")) as lab:
        begin = time.monotonic()
        machine, made = Machine(lab), Words(lab.home, ENGINES)
        lab.place("/cvmfs", lab.path("cvmfs"))
        site = Site(lab, binaries, layouts(lab, made), {FQRN: []})
        store(site, *STORED)
        lab.equal("the repository is sound", site.repositories[FQRN].check(), 0)
        site.mount(FQRN)
        lab.run("cp", binaries / "cvmfs-client", site.repositories[FQRN].keys / f"{FQRN}.pub", OPT)
        lab.run("chmod", "a+rx", OPT / "cvmfs-client", OPT / f"{FQRN}.pub")
        releases = args.version or (["5"] if args.smoke else RELEASES)
        cases = []
        for release in releases:
            for way in args.way or WAYS:
                cases.append(Case(site, table, Podman(lab, ENGINES, release, way), binaries))
        cases[0].load(*LOADED)
        print(f"images published and loaded in {time.monotonic() - begin:.1f} s")
        print(f"Podman {', '.join(dict.fromkeys(case.podman.version for case in cases))}\n")
        for case in cases:
            case.podman.switch()
            case.mount("cache")
            names = ["shell-cmd", "shell-entrypoint"] if args.smoke else [name for name in (*STORED, *LOADED) if name in CASES]
            ordinary(case, [*names, "twelve"])
            words(case, names)
            for step in SMOKE_STEPS if args.smoke else STEPS:
                step(case)
        end("docker-registry")
        port, registry = free_port(), site.url.removeprefix("http://")
        lab.serve("mirror", [binaries / "thin-image", "mirror", "--repo", FQRN, "--listen", f"127.0.0.1:{port}"], port)
        words_of = [binaries / "thin-image", "mirror", "--listen", f"127.0.0.1:{port}", "--print", "podman", "--registry", registry]
        (machine.containers / "registries.conf.d/50-cvmfs-mirror.conf").write_text(lab.run(*words_of).stdout)
        for case in cases:
            case.podman.switch()
            registry_down(case, port)
        print(f"\n{table.text()}")
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=ROOT / "target/release", help="directory of cvmfs-publisher, cvmfs-client and thin-image")
    parser.add_argument("--version", nargs="+", choices=RELEASES, help="which releases (default: all)")
    parser.add_argument("--way", nargs="+", choices=WAYS, help="as whom (default: all)")
    parser.add_argument("--smoke", action="store_true", help="the shortest pass that has every kind of thing in it")
    parser.add_argument("--table", help="a file to which the table's cells are added")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
