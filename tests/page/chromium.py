"""A page in headless Chromium, over its debugging pipe (`--remote-debugging-pipe`: JSON with a NUL after each message).

    python tests/page/chromium.py FILE|URL [--width 1360] [--height 900] [--dark] [--shot OUT.png [--full]] [--run JAVASCRIPT]

Prints one line of JSON: `ready_ms` (what the page says it took until it was drawn), `errors` (console errors, uncaught exceptions,
requests that were refused), `value` of the JavaScript, `overflow` (pixels that the page is wider than the window). Standard library only.
Exit code 3 where there is no Chromium.
"""

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-default-apps --no-default-browser-check --hide-scrollbars
--remote-debugging-pipe about:blank""".split()


def program():
    """The Chromium of this host, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One Chromium with an empty profile, ended on exit."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(prefix="herd-page-", ignore_cleanup_errors=True)
        to_child, self.out = os.pipe()
        self.inp, from_child = os.pipe()

        def pipes():  # Chromium reads from 3 and writes to 4
            a, b = os.dup(to_child), os.dup(from_child)
            os.dup2(a, 3)
            os.dup2(b, 4)

        command = [program(), f"--user-data-dir={self.profile.name}", *FLAGS]
        self.child = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.id, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        os.close(self.out)
        os.close(self.inp)
        self.profile.cleanup()

    def receive(self, end):
        while b"\0" not in self.buffer:
            if not select.select([self.inp], [], [], max(0, end - time.time()))[0]:
                raise TimeoutError("Chromium did not answer")
            part = os.read(self.inp, 1 << 20)
            if not part:
                raise EOFError(f"Chromium ended with {self.child.wait()}")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, timeout=60, **params):
        self.id += 1
        message = {"id": self.id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data):]
        end = time.time() + timeout
        while True:
            got = self.receive(end)
            if got.get("id") == self.id:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']}")
                return got["result"]
            self.events.append(got)

    def value(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def open(self, address, width=1360, height=900, dark=False, timeout=60):
        """Loads a page and waits until it says that it is drawn; milliseconds that took."""
        scale, phone = (2, True) if width < 600 else (1, False)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        end = time.time() + timeout
        while time.time() < end:
            ready = self.value("document.documentElement?.dataset?.ready")
            if ready is not None and self.value("location.href") != "about:blank":
                return int(ready)
            time.sleep(0.02)
        raise TimeoutError(f"{address} was not drawn within {timeout} s: {self.errors()}")

    def errors(self):
        """What a person would see in red in the console."""
        out = []
        for e in self.events:
            p, method = e.get("params", {}), e.get("method")
            if method == "Runtime.exceptionThrown":
                out.append(json.dumps(p["exceptionDetails"])[:400])
            elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "assert", "warning"):
                out.append(json.dumps(p["args"])[:400])
            elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                out.append(p["entry"]["text"])
        return out

    def shot(self, path, full=False):
        clip = {}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "scale": 1, "width": size["width"], "height": size["height"]}}
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        Path(path).write_bytes(base64.b64decode(data))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("page")
    p.add_argument("--width", type=int, default=1360)
    p.add_argument("--height", type=int, default=900)
    p.add_argument("--dark", action="store_true")
    p.add_argument("--shot")
    p.add_argument("--full", action="store_true")
    p.add_argument("--run", default="null")
    args = p.parse_args()
    if not program():
        print("no Chromium on the PATH", file=sys.stderr)
        sys.exit(3)
    address = args.page if "://" in args.page else Path(args.page).resolve().as_uri()
    with Browser() as b:
        ready = b.open(address, args.width, args.height, args.dark)
        value = b.value(args.run)
        overflow = b.value("document.documentElement.scrollWidth - innerWidth")
        if args.shot:
            b.shot(args.shot, args.full)
        print(json.dumps({"ready_ms": ready, "errors": b.errors(), "value": value, "overflow": overflow}))


if __name__ == "__main__":
    main()
