#!/usr/bin/env python3
"""A publisher that watches, a registry that tells, and a client that sees: for as long as the operator is away.

A real docker-registry notifies `cvmfs-publisher watch` of pushes; a mounted client shows them. The publisher is killed at random moments
while images are pushed, the list changes, the registry goes away and comes back. At the end all that was pushed is there, once.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import images
import lab as laboratory
import registry
from lab import Lab, free_port
from products import Repository

FQRN = "watch.cvmfs.test"
TOKEN = "a-token-of-this-scenario-only"
TTL = 4


class Watch:
    """The watching publisher; down at first."""

    def __init__(self, lab, repository, url, *more):
        self.lab, self.repository, self.url, self.port, self.process, self.starts = lab, repository, url, free_port(), None, 0
        self.more = more
        self.token = lab.path("watch") / "token"
        self.token.write_text(TOKEN + "\n")

    def start(self):
        """Returns when it serves."""
        self.starts += 1
        options = ["--interval", "1h", "--listen", f"127.0.0.1:{self.port}", "--hook-token", self.token, *self.more]
        command = [*self.repository.publisher, "--log-level", "info", "watch", self.repository.wish_list, *options]
        self.process = self.lab.start(f"watch-{self.starts}", command, lambda: self.ask("/healthz") is not None, "does not answer")

    def end(self, number):
        """Sends a signal and returns the status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def ask(self, path):
        """The answer as text; None if there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return None

    def status(self):
        """The status as a value."""
        return json.loads(self.ask("/status.json") or "{}")


def image(lab, name, number):
    """The layout of a small image; what it holds says which one it is."""
    layout = images.Layout(lab.dir / "layouts" / f"{name}-{number}")
    with layout.layer(level=1) as layer:
        layer.directory("opt")
        layer.add("opt/number", content=f"{name} {number}\n".encode(), mode=0o644)
    layout.finish("1", Cmd=["/opt/number"])
    return layout.directory


def within(seconds, question):
    """Waits for something to become so; the seconds that took, or None."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if question():
            return time.monotonic() - start
        time.sleep(0.1)
    return None


def shown(point, url, name):
    """What the mounted client shows of an image."""
    try:
        return (point / f"{url.removeprefix('http://')}/lab/{name}:1/opt/number").read_text()
    except OSError:
        return None


def told(lab, watch, point):
    """A push is seen by a mounted client within the time-to-live and ten seconds, without a pass over everything."""
    push = lambda number: registry.push(image(lab, "told", number), watch.url, "lab/told", "1")
    published = lambda: [image for image in watch.status().get("images", {}).values() if image["last_change"]]
    lab.check("the first pass publishes", within(60, lambda: len(published()) == 3), watch.status())
    seen = []
    for number in (2, 3, 4):
        push(number)
        took = within(TTL + 30, lambda: shown(point, watch.url, "told") == f"told {number}\n")
        lab.check(f"push {number} is seen by the client", took is not None, shown(point, watch.url, "told"))
        seen.append(took or 0)
    print(f"a push is seen after {', '.join(f'{took:.1f}' for took in seen)} s at a time-to-live of {TTL} s", flush=True)
    lab.check("within the time-to-live and ten seconds", max(seen) <= TTL + 10, seen)


def refused(lab, watch):
    """Who has no token changes nothing."""
    def post(path, token):
        request = urllib.request.Request(f"http://127.0.0.1:{watch.port}{path}", b"{}", {"Authorization": token}, method="POST")
        try:
            return urllib.request.urlopen(request, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code

    lab.equal("without the token", [post("/hooks/harbor", "wrong"), post("/hooks/none", TOKEN), post("/hooks/harbor", TOKEN)], [401, 404, 400])


def changed(lab, watch, repository, point):
    """The list changes under the running program, to something bad and back."""
    good = repository.wish_list.read_text()
    repository.wish_list.write_text("{")
    lab.check("a bad list is said", within(30, lambda: "wishlist.yaml" in (watch.status()["list"]["error"] or "")), watch.status())
    lab.check("and makes it unwell", "wishlist.yaml" in watch.ask("/healthz"), watch.ask("/healthz"))
    registry.push(image(lab, "late", 1), watch.url, "lab/late", "1")
    repository.wish_list.write_text(good + f"  - {watch.url}/lab/late:1\n")
    lab.check("a new wish is published", within(TTL + 30, lambda: shown(point, watch.url, "late") == "late 1\n"), watch.status())
    lab.check("and it is well again", within(30, lambda: watch.ask("/healthz") == "ok\n"), watch.ask("/healthz"))


def ended(lab, watch):
    """SIGTERM is an end in order."""
    lab.equal("status after SIGTERM", watch.end(signal.SIGTERM), 0)
    status = json.loads(lab.run(*watch.repository.publisher, "--json", "status", FQRN).stdout)
    lab.equal("the command status knows the images", len(status["images"]), 4)
    watch.start()


def killed(lab, watch, repository, point, kills, dice):
    """kill -9 at random moments while images are pushed: what the registry was told, and what it could not tell, is there at the end."""
    names = ["told", "second", "third"]
    number = dict.fromkeys(names, 100)
    for round_ in range(kills):
        for name in names:
            number[name] += 1
            registry.push(image(lab, name, number[name]), watch.url, f"lab/{name}", "1")
        time.sleep(dice.uniform(0, 0.6))
        watch.end(signal.SIGKILL)
        watch.start()
        if round_ % 10 == 9:
            lab.equal(f"kill {round_ + 1}: the repository is sound", repository.check(), 0)
    # Docker's registry sends again what was not taken, so nothing has to be pushed once more.
    for name in names:
        expected = f"{name} {number[name]}\n"
        lab.check(f"after {kills} kills {name} is the last one", within(120, lambda: shown(point, watch.url, name) == expected), shown(point, watch.url, name))
    lab.check("no event waits", within(30, lambda: watch.status().get("queue") == 0), watch.status())
    lab.equal("the repository is sound", repository.check("--data"), 0)
    published = json.loads(lab.run(*repository.publisher, "--json", "images", FQRN).stdout)
    lab.equal("each image is there once", len(published), 4)


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--kills", type=int, default=100, help="how often the publisher is killed")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")) or int(time.time()), help="repeats the moments of a run")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        repository = Repository(lab, args.bin, FQRN)
        watch = Watch(lab, repository, "")
        endpoint = f"http://127.0.0.1:{watch.port}/hooks/distribution"
        watch.url = registry.serve(lab, notify=(endpoint, TOKEN))
        repository.create("--ttl", TTL)
        for name in ("told", "second", "third"):
            registry.push(image(lab, name, 1), watch.url, f"lab/{name}", "1")
        repository.wish(*(f"{watch.url}/lab/{name}:1" for name in ("told", "second", "third")))
        point, _ = repository.mount("mounted", "cache", repository.serve())
        watch.start()
        told(lab, watch, point)
        refused(lab, watch)
        changed(lab, watch, repository, point)
        ended(lab, watch)
        killed(lab, watch, repository, point, args.kills, random.Random(args.seed))
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
