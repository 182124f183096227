"""Steps with thin images and annotations that lead elsewhere: a pull fails and says why, nothing is mounted that wasn't published, nothing is left.

They come from the registry like any image, with digests that are right: only what they say is not.
"""

import json

import images
import registry
from containerd import FQRN, within
from steps import refused

MARK = "containerd.io/snapshot/cvmfs.layer"


def url(hex_digest, repository=FQRN):
    """The address of a layer in a thin image."""
    return f"cvmfs://{repository}/.layers/{hex_digest[:2]}/{hex_digest}/layerfs"


def records(case):
    """{name: (thin.json, what the error says)}; `good` is a layer that is published."""
    good = case.stack.layers("one")[0].removeprefix("sha256:")
    gone = "0" * 64
    record = lambda *layers, **more: json.dumps({"version": "1.0", "layers": [{"digest": d, "url": u} for d, u in layers]} | more)
    elsewhere = "is not the directory of layer"
    return {
        "other-repository": (record((good, url(good, "secret.example.org"))), "which is not configured"),
        "parent": (record((good, url(good, ".."))), elsewhere),
        "climbs": (record((good, url(good) + "/../../../../..")), elsewhere),
        "file-url": (record((good, "file:///etc")), elsewhere),
        "http-url": (record((good, "http://127.0.0.1:1/layer")), elsewhere),
        "wrong-digest": (record((gone, url(good))), elsewhere),
        "gone": (record((good, url(good)), (gone, url(gone))), "can't be used"),
        "none": (record(), "overlayfs takes between 1"),
        "many": (record(*[(good, url(good))] * 501), "501 layers"),
        "million": (record(*[(good, url(good))] * 1_000_000), "bytes; at most"),
        "huge-field": (record((good, url(good)), origin="x" * 1_000_000), "bytes; at most"),
        "later-version": (record((good, url(good)), min_version="9.0"), "version 9.0"),
    }


def push_thin(case, name, content):
    """An image whose only layer holds a thin.json."""
    layout = images.Layout(case.lab.path(f"hostile-{name}") / "layout")
    with layout.layer() as layer:
        layer.add("thin.json", content=content.encode())
    layout.finish("1", Env=["PATH=/bin"], Cmd=["cat", "/etc/passwd"])
    registry.push(layout.directory, case.site.url, f"lab/hostile-{name}", "1")


def thin_images(case):
    """Each of them is refused, by every way in which an image comes to this node."""
    with case.step("hostile thin images") as cell:
        found = records(case)
        for name, (content, says) in found.items():
            push_thin(case, name, content)
            for how, pull in ways(case, f"hostile-{name}").items():
                error = refused(pull)
                case.check(f"{name}, {how}: is refused and said why", error and says in error, error and error[-600:])
                left = lambda: case.node.collect() or case.all_snapshots() or case.node.directories()
                case.check(f"{name}, {how}: no snapshot is left", within(30, lambda: not left()), left())
                if how == "ctr" and case.version != "2":  # it names an image first and unpacks it then; what it named doesn't run
                    reference = case.reference(f"hostile-{name}")
                    done = case.node.run(reference, "hostile", "true", ok=None)
                    case.check(f"{name}, {how}: what is left doesn't run", done.returncode != 0, done.stdout)
                    case.node.ctr("containers", "rm", "hostile", ok=None)
                    case.node.remove(reference)
                case.equal(f"{name}, {how}: no image is left", case.all_images(), [])
        case.equal("the snapshotter still serves", case.node.ask("/healthz")[0], 200)
        cell.text = f"{len(found)} refused"


def ways(case, name):
    """{name: pull} of all ways of this engine."""
    reference = case.reference(name)
    found = {case.engine.split()[0]: lambda: case.pull(name)}
    if hasattr(case, "docker"):
        return found
    return found | {"ctr": lambda: case.node.pull(reference), "CRI": lambda: case.pods.call("pull", reference)}


def annotations(case):
    """A layer that claims by an annotation to be another one: what it is counts, so it is downloaded and is what it should be."""
    with case.step("hostile annotations of layers") as cell:
        good, other = (layer.removeprefix("sha256:") for layer in case.stack.layers("twelve")[:2])
        lies = {
            "of-another-layer": f"{FQRN}:{other}",
            "of-another-repository": f"secret.example.org:{good}",
            "climbs": f"../../etc:{good}",
            "no-digest": f"{FQRN}:../../../../etc",
            "long": f"{FQRN}:{'a' * 3500}",
        }
        for name, value in lies.items():
            layout = images.Layout(case.lab.path(f"annotated-{name}") / "layout")
            layout.begin_with(case.stack.layout("one"))
            with layout.layer() as layer:
                layer.add("own", content=f"{name}\n".encode())
            layout.annotate(-1, {MARK: value})
            layout.finish("1", Env=["PATH=/bin"])
            registry.push(layout.directory, case.site.url, f"lab/annotated-{name}", "1")
            case.pull(f"annotated-{name}")
            case.equal(f"{name}: what it is counts", case.printed(f"annotated-{name}", "cat", "/own"), f"{name}\n")
            case.equal(f"{name}: nothing of the other layer is there", case.printed(f"annotated-{name}", "sh", "-c", "ls /opt 2>/dev/null; true"), "")
            case.sweep()
        cell.text = "downloaded, as they are"


ALL = (thin_images, annotations)
