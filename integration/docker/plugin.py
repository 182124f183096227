#!/usr/bin/env python3
"""Docker 20.10 and 26 with `thin-image graphdriver`: thin images run from the repository, and everything else works as with overlay2.

  make test-docker
  integration/docker/plugin.py --bin target/debug --version 26 --smoke

The images of `containerd/` from a real registry, and thin images of them in the same one. What containers see is compared with what Docker's
own overlay2 makes of the original, and with the layers themselves. `daemon-plugin.json` and `thin-image.toml` are the files that an admin
would install. Needs root; prints a line for each step and a table at the end.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integration"), str(ROOT / "integration/containerd")]
import images
import lab as laboratory
import registry
from case import Site
from containerd import ENGINES, FQRN, mounts, processes, within
from docker import CHANGES, DockerCase, without_links
from engine import Docker
from lab import Daemon, Lab
from table import Table
from volumes import SOCKET, plugin_answers, volumes

HOME = os.environ.get("DEMO_DIR", "target/demo")
# Version → the Debian release it comes from.
VERSIONS = {"20.10": "bookworm", "26": "trixie"}
MANY = 4  # layers from which on containers get the flat root
DATA = Path("/var/lib/docker/cvmfs")
PLACES = ("/etc/containerd", "/run/containerd", "/var/lib/containerd", "/opt/containerd", "/etc/thin-image", "/var/lib/thin-image", "/etc/cvmfs", "/cvmfs", "/run/cvmfs-client")


class Machine:
    """Where the engine's programs are; what `Docker` wants of a node."""

    def __init__(self, release):
        self.engine = ENGINES / release / "usr/bin"
        self.path = f"PATH={self.engine}:{self.engine.parent}/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class PluginCase(DockerCase):
    """Docker of a version, at first with overlay2 and then with the plugin."""

    def __init__(self, lab, version, site, table):
        self.lab, self.version, self.site, self.table, self.reference_trees = lab, version, site, table, {}
        self.stack, self.relay, self.binaries = site.stack, site.relay, site.binaries
        self.engine, self.prefix = f"Docker {version} + plugin", ""
        self.mount = Path("/cvmfs") / FQRN
        self.pushed = set()
        for place in PLACES:
            lab.place(place, lab.path("node/" + place.strip("/").replace("/", "-")))
        self.mount.mkdir()
        self.mount_repository("cache")
        Path("/etc/thin-image/config.toml").write_text((Path(__file__).parent / "thin-image.toml").read_text())
        self.node = Machine(VERSIONS[version])
        # Its own containerd would be a child of dockerd, and could not be told from its zombie after a kill -9 of that.
        answers = lambda: lab.run("env", self.node.path, "ctr", "version", ok=None).returncode == 0
        self.containerd = Daemon(lab, "containerd", ["env", self.node.path, "containerd"], answers, "does not answer")
        self.containerd.start()
        self.docker = Docker(lab, self.node, "daemon-plugin.json", **{"storage-driver": "overlay2"})
        lab.undo(self._end_everything)
        command = [self.binary("thin-image"), "graphdriver", "--volumes", "--client", self.binary("cvmfs-client")]
        self.plugin = Daemon(lab, "plugin", command, plugin_answers, f"does not answer on {SOCKET}")

    def _end_everything(self):
        """containerd and shims survive their dockerd on purpose."""
        ours = os.readlink("/proc/self/ns/mnt")
        for pid, command in processes():
            with contextlib.suppress(OSError):
                if command[0].startswith(("containerd", str(self.node.engine))) or os.readlink(f"/proc/{pid}/ns/mnt") != ours:
                    os.kill(pid, signal.SIGKILL)
        for line in reversed(mounts()):
            if line.split()[4].startswith(("/run/docker/", "/var/lib/docker/")):
                self.lab.run("umount", "--lazy", line.split()[4], ok=None)

    def use_plugin(self):
        """From overlay2 to the plugin, as an admin would do it."""
        self.docker.daemon.stop()
        self.docker.write("daemon-plugin.json")
        self.plugin.start()
        self.docker.daemon.start()

    def thin(self, name):
        """The thin image of an image, pushed to the registry by `thin-image push` when it is first asked for."""
        reference = f"127.0.0.1:{self.relay.port}/thin/{name}:1"
        if name not in self.pushed:
            self.lab.run(self.binary("thin-image"), "push", f"http://{self.reference(name)}", f"http://{reference}", "--repo", FQRN)
            self.pushed.add(name)
        return reference

    def pull(self, name):
        """Pulls the thin image of an image; returns its reference."""
        reference = self.thin(name)
        self.relay.reset()
        self.docker.docker("pull", reference)
        self.check(f"{name}: a few KB are downloaded", self.relay.received < 20_000 + 500 * len(self.stack.layers(name)), f"{self.relay.received} bytes")
        return reference

    def container(self, image, *command):
        """A container that goes on running."""
        return self.docker.container(image, *(command or ["sleep", "100000"]))

    def layers(self):
        """The plugin's directories of layers."""
        return sorted(entry.name for entry in (DATA / "layers").iterdir()) if DATA.exists() else []

    def overlays(self):
        """Mounts of the plugin's."""
        return [line for line in mounts() if line.split()[4].startswith(f"{DATA}/")]

    def sweep(self):
        """Removes all containers, images and volumes as an admin would; then nothing may be left."""
        docker = self.docker
        if self.plugin.starts and not plugin_answers():  # a step failed before it could start it again
            self.plugin.start()
        if containers := docker.list("ps", "--all", "--quiet"):
            docker.docker("rm", "--force", "--volumes", *containers)
        docker.docker("system", "prune", "--all", "--force", "--volumes")
        if found := docker.list("images", "--all", "--quiet"):
            docker.docker("image", "rm", "--force", *dict.fromkeys(found))
        self.check("no layer is left", within(30, lambda: not self.layers()), self.layers())
        self.check("no mount is left", not self.overlays(), self.overlays())
        left = [entry.name for place in ("new", "trash") if (DATA / place).exists() for entry in (DATA / place).iterdir()]
        self.check("nothing that was being made or removed is left", not left, left)
        shims = lambda: [command for _, command in processes() if "containerd-shim" in command[0]]
        self.check("no process is left", within(30, lambda: not shims()), shims())

    def refused(self, title, reason, *words):
        """Checks that a command of Docker fails, with a text that has `reason` in it."""
        done = self.docker.docker(*words, ok=None)
        self.check(f"{title} is refused", done.returncode != 0, done.stdout)
        self.check(f"{title}: the error says why", reason in done.stderr, f"{reason!r} is not in {done.stderr.strip()[-600:]!r}")


def first_output(case, *words):
    """Seconds until a command of Docker prints something, and all that it prints."""
    command = ["env", *case.docker.environment, case.node.engine / "docker", *words]
    start = time.monotonic()
    with subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        first = os.read(process.stdout.fileno(), 1 << 16)
        return time.monotonic() - start, (first + process.stdout.read()).decode(errors="replace")


def manifest(case, name, tag):
    """The manifest of an image in the registry."""
    request = urllib.request.Request(f"{case.site.url}/v2/{name}/manifests/{tag}", headers={"Accept": ", ".join(registry.MANIFESTS)})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


# The steps


def overlay2(case, names):
    """Docker's own driver: what the plugin is compared with."""
    with case.step("overlay2, to compare with") as cell:
        cell.text = "downloads"
        for name in names:
            case.docker.docker("pull", case.reference(name))
            container = case.container(case.reference(name))
            case.reference_trees[name] = case.tree(container)
        for image, *command in ([case.reference("twelve")], [case.reference("twelve"), "env"]):
            case.expected = [*getattr(case, "expected", []), case.output(image, *command)]


def thin(case):
    """`docker pull` and `docker run` of thin images of 1, 12 and 60 layers."""
    with case.step("thin image: pull, run") as cell:
        for name in [name for name in ("one", "twelve", "sixty") if name in case.reference_trees]:
            image = case.pull(name)
            if name == "twelve":
                cell.text = f"{case.relay.received / 1000:.1f} of {case.stack.size(name) / 1000:.0f} KB"
            container = case.container(image)
            case.right(name, container)
            lowers = container.inspect(".GraphDriver.Data.LowerDir").split(":")
            # One of them is what Docker puts between image and container.
            used = [path.removeprefix(f"{case.mount}/") for path in lowers if path.startswith(f"{case.mount}/")]
            layers = len(case.stack.layers(name))
            if layers < MANY:
                case.equal(f"{name}: directories in /cvmfs", len(used), layers)
            else:
                case.equal(f"{name}: cover and flat in the place of {layers} layers", [path.split("/")[0] for path in used], [".flat"] * 2)
        image = case.thin("twelve")
        case.rights(case.container(image))
        case.equal("the image's own command", case.output(image), case.expected[0])
        environment = lambda text: {line for line in text.splitlines() if not line.startswith(("HOSTNAME=", "CVMFS_IMAGE="))}
        case.equal("its environment", environment(case.output(image, "env")), environment(case.expected[1]))
        case.equal("a status", case.docker.run(image, "sh", "-c", "exit 7", ok=None).returncode, 7)
        found = case.docker.docker("run", "--rm", "--network", "none", "--user", "1000", "--read-only", image, "sh", "-c", "/bin/who /opt/odd/secret; touch /x 2>/dev/null || echo no").stdout
        case.equal("an ordinary user, a read-only root", found, "1000 can't read\nno\n")
        with case.relay.down():
            case.equal("without a registry, once it is pulled", case.output(image), case.expected[0])


def seconds(case):
    """From nothing to the first output of Debian's Python, thin and with overlay2 before the switch; nothing of it in any cache of the client."""
    with case.step("seconds to first output (Python)") as cell:
        case.unmount()
        case.mount_repository("cold")
        image = case.thin("python")
        case.relay.reset()
        taken, text = first_output(case, "run", "--rm", "--network", "none", image)
        case.check("it prints what it should", "numpy" in text, text)
        before, size = case.python
        cell.text = f"{taken:.1f} s; overlay2 {before:.1f} s, {size / 1e6:.0f} MB"


def ordinary(case):
    """Images that know nothing of repositories, beside thin ones."""
    with case.step("ordinary images") as cell:
        cell.text = "downloads"
        for name in ("twelve", "sixty"):
            case.docker.docker("pull", case.reference(name))
            container = case.container(case.reference(name))
            case.right(name, container)
            case.rights(container)
        thin = case.container(case.pull("twelve"))
        case.right("twelve", thin)


def diff(case):
    """`docker diff` names what a container changed, and nothing of what it has from the layers."""
    with case.step("diff"):
        container = case.container(case.pull("twelve"))
        container.exec("sh", "-euc", "echo more >> /opt/odd/link-a; rm /opt/odd/symlink; mkdir /opt/new; touch /opt/new/file; echo x > /opt/stack/deleted")
        found = set(case.docker.docker("diff", container.name).stdout.splitlines())
        expected = {"A /opt/new", "A /opt/new/file", "A /opt/stack/deleted", "D /opt/odd/symlink", "C /opt/odd/link-a"}
        case.equal("it names what changed", found, expected | {"C /opt", "C /opt/odd", "C /opt/stack"})
        size = case.docker.docker("ps", "--size", "--format", "{{.Size}}").stdout
        case.check("docker ps --size counts what it wrote alone", size.startswith(("27B", "28B", "29B", "30B", "26B", "25B", "24B")), size)


def commit(case):
    """An image made of a container on a thin image, pushed, and pulled again."""
    with case.step("commit, push, pull again"):
        container = case.container(case.pull("twelve"))
        container.exec("sh", "-euc", CHANGES)
        expected = without_links(case.tree(container))
        image = case.reference("committed")
        case.docker.docker("commit", container.name, image)
        again = case.container(image)
        case.same("the new image shows what the container showed", expected, without_links(case.tree(again)))
        case.rights(again)
        case.relay.reset()
        case.docker.docker("push", image)
        case.sweep()
        case.relay.reset()
        case.docker.docker("pull", image)
        size = sum(layer["size"] for layer in manifest(case, "lab/committed", "1")["layers"])
        case.check("layers of the original are not downloaded", case.relay.received < size + 20_000, f"{case.relay.received} bytes, {size} of layers")
        case.same("what comes back is what was pushed", expected, without_links(case.tree(case.container(image))))


def save(case):
    """`docker save` writes a thin image that can be loaded where there is no registry."""
    with case.step("save, load"):
        image, archive = case.pull("twelve"), case.lab.dir / "saved.tar"
        case.docker.docker("save", "--output", archive, image)
        identity = case.docker.docker("inspect", "--format", "{{.Id}}", image).stdout
        case.sweep()
        case.docker.docker("load", "--input", archive)
        case.equal("it is the same image", case.docker.docker("inspect", "--format", "{{.Id}}", image).stdout, identity)
        case.right("twelve", case.container(image))
        case.sweep()
        case.lab.run(
            *(case.binary("thin-image"), "load", f"http://{case.reference('twelve')}", "--repo", FQRN),
            *("--docker", "--socket", "/run/docker/docker.sock", "--as", "loaded:1"),
        )
        case.right("twelve", case.container("loaded:1"))


def build(case):
    """`docker build` on a thin image, by the old builder and by BuildKit; what it made is pushed and comes back."""
    for title, environment in (("build (old builder)", ["DOCKER_BUILDKIT=0"]), ("build (BuildKit)", ["DOCKER_BUILDKIT=1"])):
        with case.step(title):
            context = case.lab.path(title)
            (context / "file").write_text("copied\n")
            instructions = "COPY file /opt/built/file\nRUN cat /opt/odd/link-b /opt/built/file > /opt/built/run && rm /opt/odd/pipe\n"
            (context / "Dockerfile").write_text(f"FROM {case.thin('twelve')}\n{instructions}")
            case.relay.reset()
            image = case.reference("built")
            case.docker.docker("build", "--network", "none", "--tag", image, context, environment=environment)
            case.check("no layer is downloaded", case.relay.received < 30_000, f"{case.relay.received} bytes")
            built(case, image)
            case.docker.docker("push", image)
            case.sweep()
            case.docker.docker("pull", image)
            built(case, image)


def built(case, image):
    """Checks what a build on a thin image made."""
    case.equal("RUN and COPY did", case.output(image, "cat", "/opt/built/run"), "two names, one file\ncopied\n")
    found = case.tree(case.container(image))
    expected = {path: about for path, about in case.reference_trees["twelve"].items() if path != "opt/odd/pipe"}
    case.same("the rest is as before", expected, {path: about for path, about in found.items() if not path.startswith("opt/built")})


def remove(case):
    """`docker image rm`, `docker rm` and prunes give everything back."""
    with case.step("image rm, prune"):
        for name in ("one", "twelve", "sixty"):
            case.pull(name)
        container = case.container(case.thin("twelve"))
        case.equal("a layer for each image, two for the container", len(case.layers()), 5)
        container.remove()
        case.docker.docker("image", "rm", case.thin("one"))
        case.equal("layers of the other images stay", len(case.layers()), 2)
        case.docker.docker("image", "prune", "--all", "--force")
        case.equal("layers", case.layers(), [])


def plugin_restarts(case):
    """The plugin ends, in either way, under a running container, and beside a Docker that goes on."""
    with case.step("plugin: kill -9, SIGTERM"):
        image = case.pull("twelve")
        container = case.container(image)
        container.exec("sh", "-c", "echo kept > /opt/kept")
        before, root = case.layers(), Path(container.root())
        for end in (case.plugin.kill, case.plugin.stop):
            status = end()
            case.check("ends with status 0 after SIGTERM", status in (None, 0), f"{status}: {case.plugin.log()[-1000:]}")
            # `docker exec` asks for all about a container first, and waits for the plugin.
            case.equal("the container goes on without it", [(root / file).read_text() for file in ("opt/kept", "opt/odd/link-a")], ["kept\n", "two names, one file\n"])
            case.plugin.start()
            case.equal("exec, after that", container.exec("cat", "/opt/odd/link-a").stdout, "two names, one file\n")
            case.equal("all layers are there", case.layers(), before)
            case.equal("new containers start", case.output(image, "cat", "/opt/odd/link-b"), "two names, one file\n")
        case.docker.docker("stop", container.name)
        case.check("a container's mount goes with it, also of a plugin that did not make it", within(30, lambda: not case.overlays()), case.overlays())
        case.docker.docker("start", container.name)
        case.equal("its changes are kept", container.exec("cat", "/opt/kept").stdout, "kept\n")


def killed_in_pulls(case):
    """The plugin is killed at some moment of pulls; Docker waits for it or fails, and another pull goes through."""
    with case.step("plugin: kill -9 in pulls") as cell:
        through, count = 0, 6
        dice = random.Random(1)
        command = ["env", *case.docker.environment, case.node.engine / "docker", "pull", case.reference("sixty")]
        for _ in range(count):
            with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as pull:
                time.sleep(dice.uniform(0.1, 1.5))
                case.plugin.kill()
                case.plugin.start()
            through += pull.returncode == 0
            case.docker.docker("pull", case.reference("sixty"))
            container = case.container(case.reference("sixty"))
            case.right("sixty", container)
            container.remove()
            case.docker.docker("image", "rm", case.reference("sixty"))
            # What a killed Docker call left is removed when Docker starts.
            case.docker.daemon.stop()
            case.docker.daemon.start()
            case.equal("nothing is left after a start of Docker", case.layers(), [])
        cell.text = f"{through} of {count} not noticed"


def daemon_restarts(case):
    """dockerd ends, in either way: containers start again with their changes; so they do when both end at once."""
    docker = case.docker
    with case.step("dockerd, both: SIGTERM, kill -9"):
        image = case.pull("twelve")
        container = case.container(image)
        container.exec("sh", "-c", "echo kept > /opt/kept")
        before = case.layers()

        def both():
            docker.daemon.kill()
            case.plugin.kill()
            case.plugin.start()

        for end in (docker.daemon.stop, docker.daemon.kill, both):
            end()
            docker.daemon.start()
            case.check("the container ends with it", within(30, lambda: container.inspect(".State.Running") == "false"))
            case.check("its mount too", within(30, lambda: not case.overlays()), case.overlays())
            docker.docker("start", container.name)
            case.equal("its changes are kept", container.exec("cat", "/opt/kept", "/opt/odd/link-a").stdout, "kept\ntwo names, one file\n")
            case.equal("all layers are there", case.layers(), before)
            case.equal("new containers start", case.output(image, "cat", "/opt/odd/link-b"), "two names, one file\n")


def layer_gone(case):
    """A layer goes from the repository, or the whole repository does: clear errors, and nothing else is shown instead."""
    with case.step("a layer that has gone") as cell:
        cell.text = "refused"
        image, other = case.pull("twelve"), case.thin("sixty")
        copy = case.lab.dir / "copy"
        case.lab.run("cp", "--archive", case.mount, copy)
        case.unmount()
        unmount = case.lab.mount(case.mount, "mount", "--bind", copy, case.mount)
        try:
            container = case.container(image)
            hexadecimal = case.stack.layers("twelve")[5].removeprefix("sha256:")
            layer = copy / ".layers" / hexadecimal[:2] / hexadecimal
            flat = next(path for path in container.inspect(".GraphDriver.Data.LowerDir").split(":") if "/.flat/" in path and "/.cover-" not in path)
            flat = copy / Path(flat).relative_to(case.mount)
            flat.rename(copy / "flat")
            case.refused("a new container", f"flat root of image sha256:{flat.name} is no longer in repository {FQRN}", "run", "--rm", "--network", "none", image)
            case.equal("the running one has it", container.exec("cat", "/opt/odd/link-a").stdout, "two names, one file\n")
            (copy / "flat").rename(flat)
            layer.rename(copy / "gone")
            case.output(image)
            case.refused("a pull", f"layer sha256:{hexadecimal} is not in repository {FQRN}", "pull", other)
            (copy / "gone").rename(layer)
            container.remove()
        finally:
            unmount()
        case.refused("a container without the repository", f"repository {FQRN} is not mounted", "run", "--rm", "--network", "none", image)
        case.refused("a pull without the repository", f"repository {FQRN} is not mounted", "pull", other)
        case.equal("mounts", case.overlays(), [])
        case.mount_repository("after-copy")
        case.right("twelve", case.container(image))


def hostile(case):
    """Images in the registry whose thin.json wants something else: all are refused at the pull."""
    with case.step("hostile thin images") as cell:
        layer = case.stack.layers("one")[0].removeprefix("sha256:")
        url = f"cvmfs://{FQRN}/.layers/{layer[:2]}/{layer}/layerfs"
        entry = lambda url, digest=layer: {"version": "1.0", "layers": [{"digest": digest, "url": url}]}
        odd = hashlib.sha256(b"never published").hexdigest()
        documents = {
            "another repository": (entry(url.replace(FQRN, "other.example.org")), "other.example.org, which is not configured"),
            "two dots": (entry(f"cvmfs://{FQRN}/../../etc"), "only cvmfs://REPOSITORY/.layers/xx/HEX/layerfs is"),
            "two dots for a repository": (entry(url.replace(FQRN, "..")), "only cvmfs://REPOSITORY"),
            "another scheme": (entry(url.replace("cvmfs:", "file:")), "only cvmfs://REPOSITORY"),
            "another layer's directory": (entry(url, odd), "is not the directory of layer"),
            "a layer that was never published": (entry(url.replace(layer, odd).replace(f"/{layer[:2]}/", f"/{odd[:2]}/"), odd), f"{odd} is not in repository"),
            "a million layers": ({"version": "1.0", "layers": [entry(url)["layers"][0]] * 1_000_000}, "at most 262144 are read"),
            "six hundred layers": ({"version": "1.0", "layers": [entry(url)["layers"][0]] * 600}, "at most"),
            "no layers": ({"version": "1.0", "layers": []}, "lists 0 layers"),
            "a huge field": ({**entry(url), "origin": "x" * 300_000}, "at most 262144 are read"),
            "a later version": ({**entry(url), "version": "9.0"}, "version 9.0"),
            "no JSON": ("{", "can't be read"),
        }
        cell.text = f"{len(documents)} refused"
        for number, (title, (document, reason)) in enumerate(documents.items()):
            layout = images.Layout(case.lab.path(f"hostile-{number}") / "layout")
            with layout.layer(level=9) as member:
                member.add("thin.json", content=(document if isinstance(document, str) else json.dumps(document)).encode())
            layout.finish("1", Cmd=["/bin/true"])
            registry.push(layout.directory, case.site.url, f"hostile/{number}", "1")
            case.refused(title, reason, "pull", f"127.0.0.1:{case.relay.port}/hostile/{number}:1")
            case.equal(f"{title}: layers", case.layers(), [])
        case.equal("mounts", case.overlays(), [])


def wrong_archives(case):
    """Layers that would reach out of their directory."""
    with case.step("layers that reach out") as cell:
        target = case.lab.path("outside") / "victim"
        target.write_text("untouched\n")
        layout = images.Layout(case.lab.path("reach") / "layout")
        with layout.layer() as layer:
            layer.add("out", images.tarfile.SYMTYPE, link=str(target.parent))
            layer.add("out/victim", content=b"overwritten\n")
        layout.finish("1", Cmd=["/x"])
        registry.push(layout.directory, case.site.url, "hostile/link", "1")
        case.docker.docker("pull", f"127.0.0.1:{case.relay.port}/hostile/link:1", ok=None)
        case.equal("what a link leads to outside", target.read_text(), "untouched\n")
        layout = images.Layout(case.lab.path("dots") / "layout")
        with layout.layer() as layer:
            layer.add("../../../../../../victim", content=b"x\n")
        layout.finish("1", Cmd=["/x"])
        registry.push(layout.directory, case.site.url, "hostile/dots", "1")
        case.refused("two dots", "has \"..\" in it", "pull", f"127.0.0.1:{case.relay.port}/hostile/dots:1")
        cell.text = "refused"


SMOKE = (thin, commit, hostile, volumes)
ALL = (
    *(thin, ordinary, diff, commit, save, build, remove, plugin_restarts, killed_in_pulls, daemon_restarts),
    *(layer_gone, hostile, wrong_archives, volumes, seconds),
)


def scenario():
    args = arguments()
    table = Table(args.table)
    with Lab(HOME) as lab:
        start = time.monotonic()
        site = Site(lab, args)
        if seconds in chosen(args):
            registry.push(images.python_image(lab.home), site.url, "lab/python", "1")
            site.repository.wish(*(f"http://{site.reference(name)}" for name in ("one", "twelve", "sixty", "pause", "python")))
            site.repository.convert()
        print(f"     images published in {time.monotonic() - start:.1f} s", flush=True)
        for version in args.version:
            with lab.part(version) as inner:
                tries(PluginCase(inner, version, site, table), args)
        print(f"\n{table.text()}")
        return lab.verdict()


def tries(case, args):
    """All steps with one version."""
    case.docker.daemon.start()
    steps = chosen(args)
    if seconds in steps:
        case.relay.reset()
        taken, _ = first_output(case, "run", "--rm", "--network", "none", case.reference("python"))
        case.python = taken, case.relay.received
    overlay2(case, ("twelve",) if args.smoke else ("one", "twelve", "sixty"))
    case.use_plugin()
    print(f"\nDocker {case.docker.version()} with {case.docker.docker('info', '--format', '{{.Driver}} {{.DriverStatus}}').stdout.strip()}", flush=True)
    for step in steps:
        step(case)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of our programs")
    parser.add_argument("--version", nargs="+", choices=VERSIONS, default=list(VERSIONS), help="versions of Docker; all by default")
    parser.add_argument("--smoke", action="store_true", help="the shortest pass that has every kind of thing in it")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only steps with these names")
    parser.add_argument("--table", help="a file to which the table's cells are added")
    parser.set_defaults(cri=None)
    return parser.parse_args()


def chosen(args):
    """The steps of this run."""
    return [step for step in ALL if step.__name__ in args.only] if args.only else SMOKE if args.smoke else ALL


if __name__ == "__main__":
    if seconds in chosen(arguments()):
        images.python_image(HOME)  # of packages, and where the scenario runs there is no network to fetch them
    laboratory.main(scenario, network=False)
