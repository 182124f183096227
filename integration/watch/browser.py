"""A headless Chromium, told what to do over a pipe: the Chrome DevTools protocol is JSON with a NUL after each message."""

import base64
import json
import os
import subprocess
from pathlib import Path

from lab import Failure


class Browser:
    """One page. What it complains of (exceptions, refused loads) is kept in `complaints`."""

    def __init__(self, lab):
        profile, log = lab.path("chromium"), open(lab.dir / "chromium.log", "w")
        ours, theirs = os.pipe(), os.pipe()
        # Root has no sandbox here: the scenario's namespaces are one.
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe"]
        command = ["chromium", *options, f"--user-data-dir={profile}", "about:blank"]
        shell = f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "browser", *command], pass_fds=(ours[0], theirs[1]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        os.close(ours[0]), os.close(theirs[1])
        self._to, self._from, self._rest, self._number, self.complaints = ours[1], theirs[0], b"", 0, []
        lab.undo(self._end)
        self._session = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._ask("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)

    def open(self, url):
        """Loads a page."""
        self._ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, expression):
        """What an expression of the page's language comes to."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise Failure(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression):
        """Returns when an expression is true."""
        self.value(f"new Promise(done => {{ const look = () => ({expression}) ? done() : setTimeout(look, 20); look(); }})")

    def type(self, text):
        """Enters text where the cursor is, as a keyboard does."""
        self._ask("Input.insertText", text=text)

    def click(self, selector):
        """Clicks with the mouse on the middle of an element."""
        where = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for event in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=event, x=where[0], y=where[1], button="left", clickCount=1)

    def screenshot(self, path):
        """Keeps what is seen, as PNG."""
        Path(path).write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Failure(f"Chromium can't do {method}: {answer['error']}")
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(answer["params"])

    def _next(self):
        while b"\0" not in self._rest:
            read = os.read(self._from, 1 << 16)
            if not read:
                raise Failure("Chromium has ended; its log is chromium.log of the run")
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _end(self):
        self.process.terminate()
        self.process.wait(15)
        os.close(self._to), os.close(self._from)
