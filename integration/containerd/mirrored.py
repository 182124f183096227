"""Steps with `thin-image mirror` in front of the registry: what engines do while the registry is down, and what is fresh while it is up.

An engine is told what the mirror prints, in the place where its admins write it; nothing else of its configuration changes.
"""

import contextlib
import json
from pathlib import Path

import images
import registry
from containerd import FQRN, SNAPSHOTTER, within
from mirror import Mirror
from steps import refused

K8S = "k8s.io"


def digest_of(layout):
    """The digest of the manifest of a layout."""
    return json.loads((Path(layout) / "index.json").read_text())["manifests"][0]["digest"]


def by_digest(case, name):
    """The reference of an image by its digest alone."""
    return f"{case.reference(name).rsplit(':', 1)[0]}@{digest_of(case.stack.layout(name))}"


class Told:
    """A node that has been told of the mirror, and what the steps need of its engine."""

    certs = Path("/etc/containerd/certs.d")

    def __init__(self, case, options=()):
        self.case, self.mirror = case, Mirror(case.lab, case.binaries, FQRN, options=options)
        self.mirror.install("containerd", self.certs / "_default/hosts.toml")

    def end(self):
        """The mirror ends and the node forgets it."""
        self.mirror.daemon.stop()
        (self.certs / "_default/hosts.toml").unlink()

    def ways(self):
        """How this engine pulls lazily."""
        return ["cvmfs-snapshotter pull", "CRI", *(["ctr images pull"] if self.case.version == "2" else [])]

    def namespace(self, how):
        """Where images go in a way."""
        return K8S if how == "CRI" else "default"

    def pull(self, how, reference):
        """Pulls in one of the ways, which all read what the mirror printed."""
        self.case.relay.reset()
        self.mirror.relay.reset()
        if how == "CRI":
            self.case.pods.call("pull", reference)
        elif how == "ctr images pull":
            self.case.node.ctr("images", "pull", "--hosts-dir", self.certs, "--snapshotter", SNAPSHOTTER, reference)
        else:
            self.case.node.pull_ourselves(reference, "--hosts-dir", self.certs)

    def runs(self, what, how, reference):
        """Checks that a container of an image starts and sees the tree."""
        if how == "CRI":
            return kubelet(self.case, what, reference)
        container = self.case.node.container(reference, self.case.next(), "sleep", "100000", options=["--allow-new-privs"])
        self.case.right("twelve", container)
        return container.remove()

    def output(self, how, reference, *command):
        """What a container of an image prints."""
        words = ["run", "--rm", "--snapshotter", SNAPSHOTTER, reference, self.case.next(), *command]
        return self.case.node.ctr(*words, namespace=self.namespace(how)).stdout


@contextlib.contextmanager
def told(case, options=()):
    """A node with a mirror."""
    node = case.told(case, options)
    try:
        yield node
    finally:
        node.end()


@contextlib.contextmanager
def registry_down(case):
    """The registry has been stopped."""
    case.site.registry.stop()
    try:
        yield
    finally:
        case.site.registry.start()


def registry_is_down(case):
    """Pulled by tag and by digest, and run, while the registry is down; what runs is the image."""
    with case.step("registry down: by tag, by digest, run") as cell, told(case) as node, registry_down(case):
        for how in node.ways():
            for reference in (case.reference("twelve"), by_digest(case, "twelve")):
                node.pull(how, reference)
                what = f"{how} {'by digest' if '@' in reference else 'by tag'}"
                case.lazy("twelve", node.namespace(how))
                case.check(f"{what}: the mirror was asked", node.mirror.relay.requests > 0)
                node.runs(what, how, reference)
                case.sweep()
        cell.text = ", ".join(how.split()[0] for how in node.ways())


def kubelet(case, what, reference):
    """A pod of an image."""
    pods = case.pods
    pod = pods.call("sandbox", "pod")["sandbox"]
    container = pods.call("run", pod, "main", reference, "sh", "-c", "cat /opt/odd/link-a; exec sleep 100000")
    log = Path(container["log"])
    case.check(f"{what}: runs", within(30, lambda: log.read_text().endswith("stdout F two names, one file\n")), log.read_text())
    pods.call("remove", pod)


def freshness(case):
    """A tag that moves at the registry: the mirror says what is published; told to leave tags alone, it doesn't say."""
    with case.step("mirror: a tag moves") as cell:
        site, name = case.site, f"moving-{case.version}"
        push_version(case, name, 1)
        publish(case, name)
        with told(case) as node:
            push_version(case, name, 2)
            for how in node.ways():
                node.pull(how, case.reference(name))
                case.equal(f"{how}: what is published", node.output(how, case.reference(name), "cat", "/opt/version"), "1\n")
                case.sweep()
        with told(case, ["--no-tags"]) as node:
            for how in node.ways():
                node.pull(how, case.reference(name))
                case.equal(f"{how}, --no-tags: what the registry has", node.output(how, case.reference(name), "cat", "/opt/version"), "2\n")
                case.sweep()
            with registry_down(case):
                how = node.ways()[0]
                case.check("--no-tags, registry down: no tag", refused(lambda: node.pull(how, case.reference(name))))
                node.pull(how, by_digest(case, "twelve"))
                digest = digest_of(case.stack.layout("twelve"))
                case.check("--no-tags, registry down: by digest", digest in case.node.blobs(node.namespace(how)))
        case.sweep()
        with told(case) as node:
            publish(case, name)
            fresh = lambda: f'"{digest_of(site.moving)}"' in served(node, name)
            case.check("what is published now is served within the time to live", within(40, fresh), served(node, name))
            how = node.ways()[0]
            node.pull(how, case.reference(name))
            case.equal("and that is what runs", node.output(how, case.reference(name), "cat", "/opt/version"), "2\n")
        cell.text = "within the repository's time to live"


def served(node, name):
    """The digest that the mirror has for a tag, quoted."""
    host, path = node.case.reference(name).split("/", 1)
    status, body = node.mirror.ask(f"/v2/{path.rsplit(':', 1)[0]}/manifests/1?ns={host}")
    return f'"sha256:{images.hashlib.sha256(body).hexdigest()}" {status}'


def push_version(case, name, number):
    """A small image with a number in it, under a tag that had another one."""
    case.site.moving = case.lab.dir / f"{name}-{number}"
    layout = images.Layout(case.site.moving)
    layout.begin_with(case.stack.layout("one"))
    with layout.layer() as layer:
        layer.directory("opt")
        layer.add("opt/version", content=b"%d\n" % number)
    layout.finish("1", Env=["PATH=/bin"], Cmd=["cat", "/opt/version"])
    registry.push(case.site.moving, case.site.url, f"lab/{name}", "1")


def publish(case, name):
    """Publishes it and waits until it is mounted."""
    site = case.site
    wish = f"http://{case.reference(name)}"
    if wish not in site.published:
        site.published.append(wish)
    site.repository.wish(*site.published)
    outcomes = {wish["wish"]: wish["outcome"] for wish in site.repository.convert()["wishes"]}
    case.check("it is published", outcomes[wish] in ("added", "updated"), outcomes)
    case.check("and mounted", within(40, lambda: digest_of(site.moving) in mounted_digest(case, name)))


def mounted_digest(case, name):
    """The digest that the mounted repository has for an image, or nothing."""
    record = case.mount / ".metadata" / case.reference(name) / "status.json"
    return json.loads(record.read_text())["digest"] if record.exists() else ""


def mirror_ends(case):
    """The mirror is killed: with the registry nobody notices, without it pulls fail and say so, and it is back as soon as it is started."""
    with case.step("mirror: kill -9"), told(case) as node:
        node.mirror.daemon.kill()
        for how in node.ways():
            node.pull(how, case.reference("twelve"))
            case.lazy("twelve", node.namespace(how))
            case.sweep()
        with registry_down(case):
            for how in node.ways():
                said = refused(lambda: node.pull(how, case.reference("twelve")))
                case.check(f"{how}: neither answers, and the error says who", said and "127.0.0.1" in said, said)
                nothing_left(case, how)
            node.mirror.daemon.start()
            for how in node.ways():
                node.pull(how, case.reference("twelve"))
                case.lazy("twelve", node.namespace(how))
                case.sweep()


def nothing_left(case, what):
    """Checks that a pull that failed left neither image nor snapshot; blobs wait for garbage collection."""
    left = lambda: case.node.collect() or case.all_snapshots() or case.node.directories()
    case.check(f"{what}: no snapshot is left", within(30, lambda: not left()), left())
    case.equal(f"{what}: no image is left", case.all_images(), [])


def unmounted(case):
    """The repository is unmounted under the mirror: engines go on to the registry, and fail with it; mounted again, all is as before."""
    with case.step("mirror: repository is unmounted") as cell, told(case) as node:
        case.unmount()
        try:
            status, body = node.mirror.ask("/v2/lab/twelve/manifests/1?ns=" + case.reference("twelve").split("/")[0])
            case.check("it says that the repository is not mounted", status == 503 and b"not mounted" in body, f"{status} {body[:300]}")
            for how in node.ways():
                node.pull(how, case.reference("one"))
                case.sweep()
            with registry_down(case):
                for how in node.ways():
                    case.check(f"{how}: fails", refused(lambda: node.pull(how, case.reference("one"))))
                    nothing_left(case, how)
        finally:
            case.mount_repository("under-the-mirror")
        with registry_down(case):
            node.pull(node.ways()[0], case.reference("twelve"))
            case.lazy("twelve", node.namespace(node.ways()[0]))
        cell.text = "downloads; fails with the registry"


def not_published(case):
    """What the mirror does not have comes from the registry; hostile questions get errors."""
    with case.step("mirror: not published, hostile paths") as cell, told(case) as node:
        for how in node.ways():
            node.pull(how, case.reference("gap"))
            case.check(f"{how}: the registry was asked", case.relay.requests > 0)
            case.sweep()
        if case.version != "2":  # an ordinary pull through the mirror: documents from it, layers from the registry
            case.node.ctr("images", "pull", "--hosts-dir", node.certs, "--snapshotter", "overlayfs", case.reference("one"))
            case.local("one")
            case.check("documents came from the mirror", node.mirror.relay.requests > 0)
        with registry_down(case):
            said = refused(lambda: node.pull(node.ways()[0], case.reference("gap")))
            case.check("with the registry down it is an error that names the image", said and "lab/gap" in said, said)
        case.none("hostile paths that are answered", node.mirror.leaks())
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            case.equal(f"{method}", node.mirror.ask("/v2/lab/one/manifests/1", method)[0], 405)
        case.equal("it still answers", node.mirror.ask("/v2/")[0], 200)
        cell.text = "from the registry; refused"


ALL = (registry_is_down, freshness, mirror_ends, unmounted, not_published)
