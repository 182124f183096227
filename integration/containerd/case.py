"""What the steps of the scenario work on: images in a registry and in a repository, and a node with one version of containerd."""

import tarfile
from pathlib import Path

import images
import registry
from containerd import ENGINES, FQRN, SNAPSHOTTER, Node, Pods, within
from lab import Failure, Relay
from layers import MOUNTED, Stack, container_tree
from mirrored import Told
from products import Repository
from steps import Steps

PUBLISHED = ("one", "twelve", "sixty", "pause")
NAMESPACES = ("default", "other", "k8s.io")
NOBODY = "65534:65534"


class Site:
    """What all versions have in common: the registry, the images and the repository they are published in."""

    def __init__(self, lab, args):
        self.lab, self.binaries, self.cri = lab, args.bin, args.cri
        self.stack = Stack(lab.home, ENGINES)
        self.registry = registry.Registry(lab)
        self.url = self.registry.url
        self.relay = Relay(int(self.url.rsplit(":", 1)[1]))
        for name in self.stack.names():
            registry.push(self.stack.layout(name), self.url, f"lab/{name}", "1")
        self.repository = Repository(lab, args.bin, FQRN)
        self.repository.create("--ttl", "5")
        self.published = [f"http://{self.reference(name)}" for name in PUBLISHED]
        self.repository.wish(*self.published)
        self.repository.convert()
        self.port = self.repository.serve()

    def reference(self, name):
        """An image as engines call it."""
        return f"127.0.0.1:{self.relay.port}/lab/{name}:1"


class Case(Steps):
    """One version of containerd, and what the repository and the registry have for it."""

    namespaces, told = NAMESPACES, Told

    def __init__(self, lab, version, site, table):
        super().__init__(lab, table, f"containerd {version}")
        self.version, self.site, self.reference_trees = version, site, {}
        self.stack, self.relay, self.binaries = site.stack, site.relay, site.binaries
        self.mount = Path("/cvmfs") / FQRN
        self.node = Node(lab, version, site.binaries, self.reference("pause"))
        self.pods = Pods(self.node, site.cri)
        self.mount.mkdir()
        self.mount_repository("cache")
        self.node.snapshotter.start()
        self.node.containerd.start()
        self.containers = 0

    def reference(self, name):
        """An image as engines call it."""
        return self.site.reference(name)

    def binary(self, name):
        """One of our programs."""
        return Path(self.binaries).resolve() / name

    def mount_repository(self, cache):
        """Mounts the repository where the snapshotter expects it."""
        _, unmount = self.site.repository.mount(None, f"{cache}-{self.version}", self.site.port, self.mount)
        self.lab.undo(unmount)
        self.unmount = unmount

    def configure(self, *uncommented):
        """Starts both programs again with lines of the configuration files that are comments otherwise."""
        self.node.configure(*uncommented)
        self.node.containerd.stop()
        self.node.snapshotter.stop()
        self.node.snapshotter.start()
        self.node.containerd.start()

    def sweep(self):
        """Removes all containers and images; then nothing may be left."""
        node = self.node
        for namespace in NAMESPACES:
            for container in node.ctr("containers", "ls", "--quiet", namespace=namespace).stdout.split():
                node.ctr("task", "rm", "--force", container, namespace=namespace, ok=None)
                node.ctr("containers", "rm", container, namespace=namespace)
            for snapshotter in (SNAPSHOTTER, "overlayfs"):
                for key in [key for key, (_, kind) in node.snapshots(namespace, snapshotter).items() if kind != "Committed"]:
                    node.ctr("snapshots", "--snapshotter", snapshotter, "rm", key, namespace=namespace, ok=None)
            found = node.ctr("images", "ls", "--quiet", namespace=namespace).stdout.split()
            if found:
                node.ctr("images", "rm", *found, namespace=namespace)
        node.collect()
        left = lambda: [rows for namespace in NAMESPACES if (rows := node.snapshots(namespace) or node.blobs(namespace))]
        clean = within(30, lambda: not left())
        self.check("garbage collection leaves no snapshot and no blob", clean, f"{[sorted(rows)[:3] for rows in left()]}, leases {self.all_leases()}")
        self.end_leases()  # or they would fail all steps that follow
        self.check("garbage collection leaves no directory", within(30, lambda: not node.directories()), node.directories())
        self.check("no mount and no process is left", within(30, lambda: not node.leftovers()), node.leftovers())

    def all_leases(self):
        """(namespace, lease) of all that keeps something from garbage collection."""
        listed = {namespace: self.node.ctr("leases", "ls", "--quiet", namespace=namespace).stdout.split() for namespace in self.namespaces}
        return [(namespace, lease) for namespace, names in listed.items() for lease in names]

    def end_leases(self):
        """Ends all of them."""
        for namespace, lease in self.all_leases():
            self.node.ctr("leases", "rm", "--sync", lease, namespace=namespace, ok=None)

    # Pulling

    def pull(self, name, how=None, namespace="default"):
        """Pulls an image in a way, by default in the one that is lazy with this version."""
        self.relay.reset()
        if how is None and self.version == "2" or how == "ctr":
            self.node.pull(self.reference(name), namespace=namespace)
        elif how == "local":
            self.node.pull(self.reference(name), "--local", namespace=namespace)
        else:
            self.node.pull_ourselves(self.reference(name), namespace=namespace)

    def attempt(self, name):
        """Whether an image can be pulled, which may fail here."""
        try:
            self.pull(name)
        except Failure:
            return False
        return True

    def downloaded(self, name, namespace="default"):
        """Those layers of an image that containerd has as blobs."""
        return [layer for layer in self.stack.layers(name) if layer in self.node.blobs(namespace)]

    def lazy(self, name, namespace="default"):
        """Checks that the last pull of an image brought none of its layers."""
        downloaded = self.downloaded(name, namespace)
        self.check(f"{name}: no layer is in containerd's store", not downloaded, f"{len(downloaded)} of {len(self.stack.layers(name))} are")
        # Manifest and config are long for many layers.
        allowed = 20_000 + 600 * len(self.stack.layers(name))
        self.check(f"{name}: the registry sent no layer", self.relay.received < allowed, f"{self.relay.received} bytes")

    def local(self, name):
        """Checks that the last pull of an image brought all of its layers."""
        found, wanted = len(self.downloaded(name)), len(self.stack.layers(name))
        self.equal(f"{name}: layers in containerd's store", found, wanted)

    # Containers

    def next(self):
        """The name of the next container."""
        self.containers += 1
        return f"c{self.containers}"

    def container(self, name, snapshotter=SNAPSHOTTER):
        """A container that goes on running."""
        options = ["--allow-new-privs"]
        return self.node.container(self.reference(name), self.next(), "sleep", "100000", snapshotter=snapshotter, options=options)

    def run(self, name, *command, **more):
        """Runs a container to its end; returns its output."""
        return self.node.run(self.reference(name), self.next(), *command, **more).stdout

    def printed(self, name, *command):
        """The same, for steps that other engines share."""
        return self.run(name, *command)

    def thin_size(self, name, archive):
        """What a registry holds of a thin image, of what it holds of the image itself: the blobs of both."""
        with tarfile.open(archive) as members:
            size = sum(member.size for member in members if member.isfile() and member.name.startswith("blobs/"))
        return f"{size / 1000:.1f} of {self.stack.size(name) / 1000:.0f} KB"

    def all_snapshots(self):
        """The snapshots of all namespaces."""
        return [sorted(rows) for namespace in self.namespaces if (rows := self.node.snapshots(namespace))]

    def all_images(self):
        """The names of all images."""
        return [name for namespace in self.namespaces for name in self.node.ctr("images", "ls", "--quiet", namespace=namespace).stdout.split()]

    def right(self, name, container):
        """Checks the tree that a container sees."""
        found = container_tree(container.root())
        if name in self.reference_trees:
            self.same(f"{name}: the tree is the one that overlayfs shows", self.reference_trees[name], found)
        expected = {path: about for path, about in images.merged_tree(self.stack.layout(name)).items() if path not in MOUNTED}
        said = lambda path, about: {key: value for key, value in about.items() if key in expected.get(path, about)}
        found = {path: said(path, about) for path, about in found.items() if path != "."}
        self.same(f"{name}: the tree is what the layers say", expected, found)

    def same(self, name, expected, found):
        """Checks that two trees are equal."""
        differences = images.differences(expected, found)
        self.check(name, not differences, "\n    ".join(differences))

    def rights(self, container):
        """Checks that what a file is allowed to do, it can do."""
        # A busy ctr closes the line to a process that has ended before it has read all of it; this one always prints something.
        tries = lambda program: (container.exec(program, "/opt/odd/secret", user=NOBODY).stdout for _ in range(3))
        reading = lambda program: next(filter(None, tries(program)), "")
        self.equal("an ordinary user can't read the secret", reading("who"), "65534 can't read\n")
        self.equal("a set-user-id program has its user", reading("/opt/odd/set-user-id"), "0 can read\n")
        self.equal("a program with a capability has it", reading("/opt/odd/override-rights"), "65534 can read\n")
