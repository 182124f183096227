#!/usr/bin/env python3
"""The status page in a real browser: what the operator sees live, and what users see who have nothing but the mounted repository.

A publisher watches a registry with good, bad and hostile entries. Headless Chromium opens its page, searches, opens an image and reads the
commands; the copy in the repository is opened from the mount, without a server, and once more with thousands of images.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import lab as laboratory
import registry
from browser import Browser
from lab import Lab
from products import Repository
from watch import FQRN, TTL, Watch, image, within

MANY = 3000
HOSTILE = "http://127.0.0.1:1/lab/hostile:<img src=x onerror=window.hacked=1>"


def rows(browser):
    """The names in the table."""
    return browser.value("[...document.querySelectorAll('tr.image .name')].map(cell => cell.textContent)")


def search(browser, text):
    """Enters text in the field for it, instead of what is there."""
    browser.value("(() => { const field = document.getElementById('search'); field.focus(); field.select(); })()")
    browser.type(text) if text else browser.value("(f => { f.value = ''; f.dispatchEvent(new Event('input')); })(document.getElementById('search'))")


def live(lab, browser, watch, point, pictures):
    """The page of the running publisher."""
    browser.open(f"http://127.0.0.1:{watch.port}/")
    browser.wait("document.querySelectorAll('tr.image').length > 0")
    base = f"{watch.url}/lab"
    shown = rows(browser)
    lab.equal("what fails is first, then by name", [name.removeprefix(base) for name in shown], ["/late:1", "/missing:1", "/first:1", "/second:1"])
    lab.equal("the title names the repository", browser.value("document.title"), f"{FQRN}: container images")
    facts = browser.value("document.getElementById('facts').textContent")
    lab.check("revision and counts are said", re.search(r"revision \d+ · \d+ images · 2 failing", facts), facts)
    lab.check("the bad entry is said", "hostile" in browser.value("document.getElementById('trouble').textContent"), facts)

    search(browser, "second")
    lab.equal("a search leaves what matches", rows(browser), [f"{base}/second:1"])
    browser.click("tr.image")
    browser.wait("document.querySelector('.detail')")
    commands = browser.value("[...document.querySelectorAll('.command code')].map(code => code.textContent)")
    path = f"/cvmfs/{FQRN}/{base.removeprefix('http://')}/second:1"
    lab.equal("the commands of four engines", [command.split()[0] for command in commands], ["apptainer", "nerdctl", "docker", "podman"])
    lab.check("with the path of the image", commands[0] == f"apptainer shell {path}" and path in commands[3], commands)
    file = point / path.removeprefix(f"/cvmfs/{FQRN}/") / "opt/number"
    lab.check("where the image is", within(TTL + 10, file.is_file) is not None, path)
    browser.click(".command button")
    browser.wait("document.querySelector('.command button').textContent === 'Copied'")
    lab.check("a command is copied", True)
    browser.screenshot(pictures / "live.png")

    search(browser, "")
    browser.click("#failing")
    lab.equal("failing ones only", rows(browser), [f"{base}/late:1", f"{base}/missing:1"])
    browser.click("#failing")

    registry.push(image(lab, "late", 1), watch.url, "lab/late", "1")
    published = within(60, lambda: any(i["last_success"] and "late" in n for n, i in watch.status()["images"].items()))
    lab.check("a push is published", published is not None, watch.status())
    browser.wait("[...document.querySelectorAll('.name')].some(cell => cell.textContent.endsWith('/late:1') && cell.nextSibling.textContent === 'added')")
    lab.check("and shown without a reload", True)


def copied(lab, browser, watch, point, pictures):
    """The copy that is in the repository."""
    file = point / ".status.html"
    lab.check("the copy is published", within(TTL + 30, lambda: file.exists() and "/late:1" in file.read_text()) is not None, file)
    for secret in (watch.repository.wish_list, "hostile"):
        lab.check(f"the copy does not have {secret}", str(secret) not in file.read_text().replace(HOSTILE, ""))
    browser.open(f"file://{file}#{watch.url}/lab/first:1")
    browser.wait("document.querySelectorAll('tr.image').length > 0")
    lab.check("it shows the images", any(name.endswith("/second:1") for name in rows(browser)), rows(browser))
    lab.equal("a link opens its image", browser.value("document.querySelectorAll('.detail').length"), 1)
    lab.check("why images fail is the operator's", "rror" not in browser.value("document.getElementById('images').textContent"))


def crowded(lab, browser, point, pictures):
    """The same page with thousands of images, some of them hostile."""
    head, data, tail = re.fullmatch(r'(.*id="data">)(.*?)(</script>.*)', (point / ".status.html").read_text(), re.DOTALL).groups()
    status = json.loads(data)
    template = next(one for name, one in status["images"].items() if name.endswith("/first:1"))
    status["images"] = {f"https://registry.example.org/group-{n % 37}/tool-{n:04}:1.{n % 10}": template for n in range(MANY)}
    status["images"][HOSTILE] = template | {"outcome": "failed", "failures": 3, "error": "</script><img src=x onerror=window.hacked=1>"}
    file = lab.dir / "many.html"
    file.write_text(head + json.dumps(status).replace("<", "\\u003c") + tail)
    browser.open(f"file://{file}")
    browser.wait("document.querySelectorAll('tr.image').length > 0")
    lab.equal("it shows so many at first", len(rows(browser)), 200)
    lab.equal("what fails is on top", rows(browser)[0], HOSTILE)
    lab.check("all are counted", f"{MANY + 1} images" in browser.value("document.getElementById('facts').textContent"))
    browser.click("tr.image")
    browser.wait("document.querySelector('.detail')")
    lab.equal("hostile text stays text", browser.value("[document.images.length, window.hacked ?? null]"), [0, None])
    search(browser, "tool-2999")
    lab.equal("a search finds the last", len(rows(browser)), 1)
    milliseconds = browser.value("(() => { const begun = performance.now(); draw(); return performance.now() - begun; })()")
    print(f"drawing after a search among {MANY}: {milliseconds:.0f} ms", flush=True)
    search(browser, "group-7/")
    lab.equal("a search by path", len(rows(browser)), len([n for n in range(MANY) if n % 37 == 7]))
    browser.screenshot(pictures / "many.png")


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--pictures", type=Path, default=Path("target/pictures"), help="directory for what was seen")
    args = parser.parse_args()
    args.pictures.mkdir(parents=True, exist_ok=True)
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        repository = Repository(lab, args.bin, FQRN)
        watch = Watch(lab, repository, "", "--publish-page", "2s")
        watch.url = registry.serve(lab, notify=(f"http://127.0.0.1:{watch.port}/hooks/distribution", "a-token-of-this-scenario-only"))
        repository.create("--ttl", TTL)
        for name in ("first", "second"):
            registry.push(image(lab, name, 1), watch.url, f"lab/{name}", "1")
        repository.wish(*(f"{watch.url}/lab/{name}:1" for name in ("first", "second", "missing", "late")), HOSTILE)
        point, _ = repository.mount("mounted", "cache", repository.serve())
        watch.start()
        browser = Browser(lab)
        within(60, lambda: sum(image["last_success"] is not None for image in watch.status().get("images", {}).values()) == 2)
        live(lab, browser, watch, point, args.pictures)
        copied(lab, browser, watch, point, args.pictures)
        crowded(lab, browser, point, args.pictures)
        lab.equal("the browser complains of nothing", browser.complaints, [])
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
