#!/usr/bin/env python3
"""Docker with the containerd image store and images from a repository: pull, run, diff, commit, build, remove, restart.

  make test-docker
  integration/docker/docker.py --bin target/debug --version 26 --smoke

The same images as those of `containerd/`, from the same kind of registry and repository, on a node of `containerd/`. That nothing is
downloaded is counted at the registry and in containerd's store. What a container sees is compared with what plain containerd with its
overlayfs snapshotter makes of the same image, and with the layers themselves. `daemon.json` is the file that an admin would install. Needs
root; prints a line for each step and a table at the end.
"""

import argparse
import json
import os
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integration"), str(ROOT / "integration/containerd")]
import hostile
import images
import lab as laboratory
import mirrored
import registry
from case import NAMESPACES, Case, Site
from containerd import ENGINES, FQRN, within
from engine import ADDED, MOBY, Docker
from lab import Daemon, Lab
from layers import MOUNTED, container_tree
from steps import refused
from table import Table
from volumes import plugin_answers, volumes


# Version → that of containerd in the same release of Debian.
VERSIONS = {"26": "1.7", "28": "2"}


class Told(mirrored.Told):
    """A Docker that has been told of the mirror: it reads the same file as containerd, in a directory of its own."""

    certs = Path("/etc/docker/certs.d")

    def ways(self):
        return ["docker pull"]

    def namespace(self, how):
        return MOBY

    def pull(self, how, reference):
        self.case.relay.reset()
        self.mirror.relay.reset()
        self.case.docker.docker("pull", reference)

    def runs(self, what, how, reference):
        container = self.case.docker.container(reference, "sleep", "100000")
        self.case.right("twelve", container)
        container.remove()

    def output(self, how, reference, *command):
        return self.case.output(reference, *command)


class DockerCase(Case):
    """Docker of a version, on a node with the containerd of the same release."""

    namespaces, told = (*NAMESPACES, MOBY), Told

    def __init__(self, lab, version, site, table):
        super().__init__(lab, VERSIONS[version], site, table)
        self.name, self.engine = version, f"Docker {version}"
        self.docker = Docker(lab, self.node)
        self.docker.daemon.start()

    def sweep(self):
        """Removes all containers and images as an admin would; then nothing may be left."""
        docker = self.docker
        if containers := docker.list("ps", "--all", "--quiet"):
            docker.docker("rm", "--force", *containers)
        if found := docker.list("images", "--all", "--quiet"):
            docker.docker("image", "rm", "--force", *dict.fromkeys(found))
        docker.docker("system", "prune", "--all", "--force")
        self.node.collect()
        left = lambda: (sorted(self.node.snapshots(MOBY)), sorted(self.node.blobs(MOBY)), self.leases())
        self.check("no snapshot, no blob, no lease is left to Docker", within(30, lambda: not any(left())), left())
        super().sweep()

    def restart(self, *uncommented):
        """Restarts the snapshotter with lines of its configuration file that are comments otherwise."""
        self.node.configure(*uncommented)
        self.node.snapshotter.stop()
        self.node.snapshotter.start()

    def leases(self):
        """What keeps things from garbage collection."""
        return self.node.ctr("leases", "ls", "--quiet", namespace=MOBY).stdout.split()

    def pull(self, name, how=None, namespace=MOBY):
        """`docker pull`, or what containerd's own client does if asked for a way."""
        if how:
            return super().pull(name, how, namespace)
        self.relay.reset()
        return self.docker.docker("pull", self.reference(name))

    def lazy(self, name, namespace=MOBY):
        """Checks that the last pull of an image brought none of its layers."""
        super().lazy(name, namespace)

    def start(self, name, *command):
        """A container that goes on running."""
        return self.docker.container(self.reference(name), *(command or ["sleep", "100000"]))

    def output(self, image, *command):
        """What a container of an image prints."""
        return self.docker.run(image, *command).stdout

    def printed(self, name, *command):
        """The same, for steps that other engines share."""
        return self.output(self.reference(name), *command)

    def saved(self, name):
        """Those layers of an image that are in the archive that `docker save` writes."""
        archive = self.lab.dir / "saved.tar"
        self.docker.docker("save", "--output", archive, self.reference(name))
        with tarfile.open(archive) as members:
            names = set(members.getnames())
        return [layer for layer in self.stack.layers(name) if f"blobs/{layer.replace(':', '/')}" in names]

    def tree(self, container):
        """What a container sees, without what Docker put there."""
        return without(container_tree(container.root()))

    def right(self, name, container):
        """Checks the tree that a container sees."""
        found = self.tree(container)
        if name in self.reference_trees:
            self.same(f"{name}: the tree is the one that overlayfs shows", self.reference_trees[name], found)
        expected = {path: about for path, about in images.merged_tree(self.stack.layout(name)).items() if path not in MOUNTED}
        said = lambda path, about: {key: value for key, value in about.items() if key in expected.get(path, about)}
        self.same(f"{name}: the tree is what the layers say", expected, {path: said(path, about) for path, about in found.items() if path != "."})


def without(tree):
    """A tree without what Docker puts there."""
    return {path: about for path, about in tree.items() if path not in ADDED}


# The steps


def overlayfs(case):
    """Plain containerd with its own snapshotter: what the others are compared with."""
    with case.step("overlayfs, to compare with") as cell:
        cell.text = "downloads"
        for name in ("one", "twelve", "sixty"):
            case.node.pull(case.reference(name), snapshotter="overlayfs")
            container = case.container(name, "overlayfs")
            case.reference_trees[name] = without(container_tree(container.root()))
            container.remove()


def pull(case):
    """`docker pull` at default settings."""
    with case.step("pull") as cell:
        cell.text = "lazy"
        case.pull("twelve")
        case.lazy("twelve")
        container = case.start("twelve")
        case.right("twelve", container)
        case.rights(container)


def many_layers(case):
    """One, twelve and sixty layers; what two images have in common is there once."""
    with case.step("1, 12, 60 layers; shared ones once"):
        for name, count in (("one", 1), ("twelve", 12), ("sixty", 60)):
            case.pull(name)
            case.lazy(name)
            committed = [key for key, (_, kind) in case.node.snapshots(MOBY).items() if kind == "Committed"]
            case.equal(f"{name}: committed snapshots", len(committed), count)
        for name in ("one", "twelve", "sixty"):
            container = case.start(name)
            case.right(name, container)
            container.remove()
        case.check("all committed snapshots lead to the repository", sum(case.node.directories().values()) == 60, case.node.directories())
        case.docker.docker("image", "rm", case.reference("twelve"))
        case.equal("what only the other image has stays", case.output(case.reference("sixty"), "cat", "/opt/layers/last"), "59\n")


def run_and_exec(case):
    """A container of an image that is not downloaded; `docker run` pulls it."""
    with case.step("run, exec"):
        image = case.reference("twelve")
        case.relay.reset()
        case.equal("the image's own command", case.output(image), images.GREETING + "\n")
        case.lazy("twelve")
        case.equal("a status", case.docker.run(image, "sh", "-c", "exit 7", ok=None).returncode, 7)
        container = case.start("twelve")
        changes = "cd /opt/odd && echo more >> link-a && rm symlink && mv owned moved && cat link-a moved"
        case.equal("files can be changed", container.exec("sh", "-c", changes).stdout, "two names, one file\nmore\nby user 1000\n")
        case.equal("exec in a second process", container.exec("cat", "/opt/odd/moved").stdout, "by user 1000\n")
        case.docker.docker("restart", "--time", "0", container.name)
        case.equal("changes outlive docker restart", container.exec("cat", "/opt/odd/moved").stdout, "by user 1000\n")
        case.right("twelve", case.start("twelve"))


CHANGES = (
    "cd /opt/stack; rm -r merged; mkdir merged; echo fresh > merged/fresh; echo inside > replaced/added; rm replaced/new; "
    "rm -r becomes-directory; mkdir -p new/tree; echo x > new/tree/file; echo changed >> mode; echo again > deleted; "
    "cd ../odd; rm owned; chmod 4711 set-user-id; rm -r attributes-of-a-directory; ln link-a link-d"
)


def diff(case):
    """`docker diff` names what a container changed, and nothing of what it has from the layers."""
    with case.step("diff"):
        case.pull("twelve")
        container = case.start("twelve")
        container.exec("sh", "-euc", "echo more >> /opt/odd/link-a; rm /opt/odd/symlink; mkdir /opt/new; touch /opt/new/file; echo x > /opt/stack/deleted")
        found = set(case.docker.docker("diff", container.name).stdout.splitlines())
        expected = {"A /opt/new", "A /opt/new/file", "A /opt/stack/deleted", "D /opt/odd/symlink", "C /opt/odd/link-a"}
        above = {"C /opt", "C /opt/odd", "C /opt/stack"}
        case.equal("it names what changed", found - above, expected)


def commit(case):
    """An image made of a container whose changes lie over opaque directories and whiteouts."""
    with case.step("commit, run"):
        case.pull("twelve")
        container = case.start("twelve")
        container.exec("sh", "-euc", CHANGES)
        expected = case.tree(container)
        case.docker.docker("commit", container.name, "committed:1")
        container.remove()
        case.equal("no layer is downloaded for it", case.downloaded("twelve", MOBY), [])
        again = case.docker.container("committed:1", "sleep", "100000")
        case.same("the new image shows what the container showed", without_links(expected), without_links(case.tree(again)))
        case.rights(again)


def without_links(tree):
    """A tree without what a layer can't say of a link to a file of a layer below."""
    return {path: {key: value for key, value in about.items() if key != "links"} for path, about in tree.items()}


def push(case):
    """Pushing and saving need what was not downloaded; containerd's own client brings it."""
    with case.step("push, save") as cell:
        case.pull("twelve")
        container = case.start("twelve")
        container.exec("sh", "-euc", CHANGES)
        expected = case.tree(container)
        pushed = f"pushed-{case.name}"  # what one version has pushed is there for the other
        image = case.reference(pushed)
        case.docker.docker("commit", container.name, image)
        refused = case.docker.docker("push", image, ok=None)
        case.check("push refuses what is not there", refused.returncode != 0 and "not found" in refused.stderr, refused.stderr)
        case.equal("save leaves it out", case.saved("twelve"), [])
        case.node.ctr("content", "fetch", "--plain-http", case.reference("twelve"), namespace=MOBY)
        case.equal("save has it once it is there", case.saved("twelve"), case.stack.layers("twelve"))
        case.docker.docker("push", image)
        case.sweep()
        case.pull(pushed)
        case.equal("no layer of the old image is downloaded", case.downloaded("twelve", MOBY), [])
        case.same("what comes back is what was pushed", without_links(expected), without_links(case.tree(case.start(pushed))))
        cell.text = "after ctr content fetch"


def build(case):
    """`docker build` on a published image, by the old builder and by BuildKit, which takes lazy layers if they are there."""
    old, new = ["DOCKER_BUILDKIT=0"], ["DOCKER_BUILDKIT=1"]
    for title, pulled, environment in (("build (old builder)", False, old), ("build (BuildKit)", False, new), ("… after docker pull", True, new)):
        with case.step(title) as cell:
            context = case.lab.path(title)
            (context / "file").write_text("copied\n")
            instructions = "COPY file /opt/built/file\nRUN cat /opt/odd/link-b /opt/built/file > /opt/built/run\n"
            (context / "Dockerfile").write_text(f"FROM {case.reference('twelve')}\n{instructions}")
            if pulled:
                case.pull("twelve")
            case.docker.docker("build", "--network", "none", "--tag", "built:1", context, environment=environment)
            downloaded, lazy = len(case.downloaded("twelve", MOBY)), sum(case.node.directories().values())
            cell.text = f"{lazy} of 12 lazy, {downloaded} downloaded"
            if case.name == "26" and environment == old:
                case.end_leases()  # it forgets its own, also with overlayfs, and what was pulled would stay for an hour
            case.check("lazy layers are used", lazy == 12 or environment == new and not pulled, f"{lazy} of 12")
            case.equal("RUN and COPY did", case.output("built:1", "cat", "/opt/built/run"), "two names, one file\ncopied\n")
            found = case.tree(case.docker.container("built:1", "sleep", "100000"))
            expected = case.reference_trees["twelve"]
            case.same("the rest is as before", expected, {path: about for path, about in found.items() if not path.startswith("opt/built")})


def gap(case):
    """An image of which the repository lacks a layer in the middle."""
    with case.step("a layer that is not published") as cell:
        case.pull("gap")
        base, missing, _ = case.stack.layers("gap")
        downloaded = case.downloaded("gap", MOBY)
        case.check("the layer below it is not downloaded", base not in downloaded, downloaded)
        case.check("the layer itself is", missing in downloaded, downloaded)
        lazy = sum(case.node.directories().values())
        cell.text = f"{lazy} of 3 lazy, {len(downloaded)} downloaded"
        case.check("the layer below it leads to the repository", lazy >= 1, case.node.directories())
        case.right("gap", case.start("gap"))


def gap_filled(case):
    """The same if the snapshotter may fetch the one layer: then the others stay where they are."""
    with case.step("… filled in by the snapshotter") as cell:
        cell.text = "2 of 3 lazy, 1 downloaded"
        case.restart('fill_missing = "registry"')
        case.pull("gap")
        _, missing, _ = case.stack.layers("gap")
        case.equal("layers that are downloaded", set(case.downloaded("gap", MOBY)) - {missing}, set())
        case.equal("layers that lead to the repository", sum(case.node.directories().values()), 2)
        case.right("gap", case.start("gap"))
    case.restart()


def unpublished(case):
    """An image of which nothing is in the repository: an ordinary pull."""
    with case.step("an image that is not published") as cell:
        cell.text = "downloads"
        layout = images.Layout(case.lab.path("unpublished") / "layout")
        busybox = (ENGINES / "bookworm/bin/busybox").read_bytes()
        for number in range(2):
            with layout.layer() as layer:
                layer.directory("bin")
                layer.add(f"bin/{('cat', 'sh')[number]}", content=busybox, mode=0o755)
                layer.add(f"bin/file-{number}", content=b"not published\n")
        layout.finish("1", Env=["PATH=/bin"], Cmd=["/bin/cat", "/bin/file-0", "/bin/file-1"])
        registry.push(layout.directory, case.site.url, "lab/unpublished", "1")
        case.pull("unpublished")
        manifest, _ = images.read_layout(layout.directory)
        layers = {layer["digest"] for layer in manifest["layers"]}
        case.equal("its layers are in containerd's store", layers & case.node.blobs(MOBY), layers)
        case.equal("no layer leads to the repository", sum(case.node.directories().values()), 0)
        case.equal("runs", case.output(case.reference("unpublished")), "not published\n" * 2)


def thin_pulled(case):
    """Thin images: from a registry, and loaded while the original's registry is gone."""
    with case.step("thin image: pull, load") as cell:
        cell.text = "lazy"
        source, name = f"http://{case.reference('twelve')}", f"127.0.0.1:{case.relay.port}/thin/twelve:1"
        program = case.binary("thin-image")
        case.lab.run(program, "push", source, f"http://{name}", "--repo", FQRN)
        case.relay.reset()
        case.docker.docker("pull", name)
        case.check("a few KB are downloaded", case.relay.received < 30_000, f"{case.relay.received} bytes")
        container = case.docker.container(name, "sleep", "100000")
        case.right("twelve", container)
        case.rights(container)
        case.equal("the image's own command", case.output(name), images.GREETING + "\n")
        case.sweep()
        with case.relay.down():
            case.lab.run(program, "load", source, "--repo", FQRN, "--docker", "--socket", "/run/docker/docker.sock", "--as", "loaded:1")
            case.right("twelve", case.docker.container("loaded:1", "sleep", "100000"))
            case.equal("its own command", case.output("loaded:1"), images.GREETING + "\n")
            case.check("there is no registry", refused(lambda: case.docker.docker("pull", name)))


def plugin_volumes(case):
    """Volumes by `thin-image volumes`, which Docker finds by its socket."""
    for place in ("/etc/thin-image", "/var/lib/thin-image", "/etc/cvmfs"):
        case.lab.place(place, case.lab.path("node/" + place.strip("/").replace("/", "-")))
    Path("/etc/thin-image/config.toml").write_text((Path(__file__).parent / "thin-image.toml").read_text())
    command = [case.binary("thin-image"), "volumes", "--client", case.binary("cvmfs-client")]
    case.plugin = Daemon(case.lab, "volumes", command, plugin_answers, "does not answer on its socket")
    case.plugin.start()
    volumes(case)


def remove(case):
    """`docker image rm` and `docker system prune` give everything back."""
    with case.step("image rm, system prune"):
        for name in ("twelve", "sixty", "gap"):
            case.pull(name)
        case.start("twelve").remove()
        stopped = case.start("sixty", "true")
        case.check("a container ends", within(30, lambda: stopped.inspect(".State.Running") == "false"))
        for name in ("twelve", "gap"):
            case.docker.docker("image", "rm", case.reference(name))
        case.equal("what another image needs stays", len([kind for _, kind in case.node.snapshots(MOBY).values() if kind == "Committed"]), 61)
        case.docker.docker("container", "prune", "--force")
        case.docker.docker("image", "rm", case.reference("sixty"))
        case.node.collect()
        left = lambda: (sorted(case.node.snapshots(MOBY)), sorted(case.node.blobs(MOBY)), case.node.directories())
        case.check("nothing is left", within(30, lambda: not any(left())), left())


def restarts(case):
    """The snapshotter ends, in either way, under a running container."""
    node = case.node
    with case.step("snapshotter: kill -9, SIGTERM") as cell:
        case.pull("twelve")
        container = case.start("twelve")
        before = node.snapshots(MOBY)
        for end in (node.snapshotter.kill, node.snapshotter.stop):
            status = end()
            case.check("ends with status 0 after SIGTERM", status in (None, 0), status)
            case.equal("the container goes on without it", container.exec("cat", "/opt/odd/link-a").stdout, "two names, one file\n")
            node.snapshotter.start()
            start = time.monotonic()
            case.check("new containers start", within(30, lambda: starts(case)))
            cell.text = f"new container after {time.monotonic() - start:.1f} s"
            case.equal("all snapshots are there", node.snapshots(MOBY), before)
            case.right("twelve", container)
            container.exec("sh", "-c", "touch /opt/after && rm /opt/after")
        case.pull("sixty")
        case.lazy("sixty")


def starts(case):
    """Whether a container starts and runs."""
    return case.docker.run(case.reference("twelve"), "cat", "/opt/odd/link-b", ok=None).stdout == "two names, one file\n"


def daemon_restarts(case):
    """dockerd ends, in either way: containers end with it, and start again with their changes."""
    docker = case.docker
    with case.step("dockerd: SIGTERM, kill -9"):
        case.pull("twelve")
        container = case.start("twelve")
        container.exec("sh", "-c", "echo kept > /opt/kept")
        before = case.node.snapshots(MOBY)
        for end in (docker.daemon.stop, docker.daemon.kill):
            end()
            docker.daemon.start()
            case.check("the container ends with it", within(30, lambda: container.inspect(".State.Running") == "false"))
            docker.docker("start", container.name)
            case.equal("its changes are kept", container.exec("cat", "/opt/kept", "/opt/odd/link-a").stdout, "kept\ntwo names, one file\n")
            case.equal("all snapshots are there", case.node.snapshots(MOBY), before)
            case.check("new containers start", starts(case))


def collected(case):
    """After all of that, nothing is left; the snapshotter says so as well."""
    with case.step("remove, garbage collection"):
        case.pull("sixty")
        case.output(case.reference("sixty"), "true")
        case.sweep()
        status = json.loads(case.node.ask("/status")[1])
        case.equal("snapshots by the snapshotter's own count", set(status["snapshots"].values()), {0})


def thin(case):
    """A thin image from a file: no registry is asked for anything, and the container is the same."""
    with case.step("thin image, no registry") as cell:
        image, archive = case.reference("twelve"), case.lab.path("thin") / "twelve.tar"
        case.lab.run(case.binary("thin-image"), "build", f"http://{image}", "--repo", FQRN, "--output", archive)
        case.relay.reset()
        case.docker.docker("load", "--input", archive)
        container = case.start("twelve")
        case.right("twelve", container)
        case.rights(container)
        case.equal("no layer is in containerd's store", case.downloaded("twelve", MOBY), [])
        case.equal("the registry was asked for nothing", case.relay.requests, 0)
        cell.text = case.thin_size("twelve", archive)


def hub(case):
    """A name of Docker Hub, on a node that has no network: `registry-mirrors` in daemon.json."""
    with case.step("registry-mirrors, no network"):
        repository = case.site.repository
        layout = case.stack.layout("twelve")
        case.lab.run(*repository.publisher, "convert-image", f"oci:{layout}", FQRN, "--as", "registry.hub.docker.com/lab/twelve:1")
        record = case.mount / ".metadata/registry.hub.docker.com/lab/twelve:1/status.json"
        case.check("it is mounted", within(40, record.exists))
        case.check("Docker Hub can't be reached", refused(lambda: case.docker.docker("pull", "lab/twelve:1")))
        mirror = mirrored.Mirror(case.lab, case.binaries, FQRN)
        try:
            case.docker.configure(json.loads(mirror.printed("docker")))
            for reference in ("lab/twelve:1", f"lab/twelve@{mirrored.digest_of(layout)}"):
                case.docker.docker("pull", reference)
                case.equal(f"{reference}: no layer is downloaded", case.downloaded("twelve", MOBY), [])
                case.equal(f"{reference}: runs", case.output(reference), images.GREETING + "\n")
                case.sweep()
            case.check("what is not published is an error", refused(lambda: case.docker.docker("pull", "lab/none:1")))
        finally:
            mirror.daemon.stop()
            case.docker.configure({})


def first_output(case):
    """Seconds from an empty cache to the first output, beside Docker on overlayfs."""
    with case.step("seconds to first output") as cell:
        image, command = case.reference("twelve"), ["run", "--rm", "--network", "none", case.reference("twelve"), "cat", "/opt/odd/link-a"]
        case.docker.configure({"storage-driver": "overlayfs"})
        try:
            start = time.monotonic()
            case.docker.docker("pull", image)
            ordinary = time.monotonic() - start + case.docker.first_output(*command)
            case.sweep()
        finally:
            case.docker.configure({})
        case.unmount()
        start = time.monotonic()
        case.mount_repository("cold")
        case.docker.docker("pull", image)
        cell.text = f"{time.monotonic() - start + case.docker.first_output(*command):.2f} s; overlayfs {ordinary:.2f} s"


SMOKE = (pull, run_and_exec, commit, thin_pulled, plugin_volumes, mirrored.registry_is_down, hub, collected)
ALL = (
    *(overlayfs, pull, many_layers, run_and_exec, diff, commit, push, build, gap, gap_filled, unpublished, remove, thin, thin_pulled),
    *mirrored.ALL,
    *(hub, *hostile.ALL, first_output),
    *(plugin_volumes, restarts, daemon_restarts, collected),
)


def chosen(args, version):
    """The steps of this run. Docker before 28 has mirrors of Docker Hub only."""
    return [step for step in (SMOKE if args.smoke else ALL) if step not in mirrored.ALL or version != "26"]


def scenario():
    args = arguments()
    table = Table(args.table)
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        start = time.monotonic()
        site = Site(lab, args)
        print(f"     images published in {time.monotonic() - start:.1f} s", flush=True)
        for version in args.version:
            with lab.part(version) as inner:
                case = DockerCase(inner, version, site, table)
                print(f"\nDocker {case.docker.version()} on containerd of {case.node.release}", flush=True)
                for step in chosen(args, version):
                    step(case)
        print(f"\n{table.text()}")
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher, cvmfs-client and cvmfs-snapshotter")
    parser.add_argument("--version", nargs="+", choices=VERSIONS, default=list(VERSIONS), help="versions of Docker; all by default")
    parser.add_argument("--smoke", action="store_true", help="the shortest pass that has every kind of thing in it")
    parser.add_argument("--table", help="a file to which the table's cells are added")
    parser.set_defaults(cri=None)
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
