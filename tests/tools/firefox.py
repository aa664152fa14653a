"""Firefox, driven over WebDriver BiDi, the protocol that it speaks by itself: the site's second browser engine."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import websocket

SECONDS = 60


class Firefox:
    """A window of Firefox without a screen; ``problems`` says what pages asked of others and what went wrong in them.

    Args:
        program: the browser.
        profile: an empty folder for what it keeps.
        address: of the site that pages may load files from.
    """

    def __init__(self, program: str, profile: Path, address: str) -> None:
        self.address, self.problems, self._number = address, [], itertools.count(1)
        options = ["--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
        log = profile / "log"  # a pipe that nobody reads would fill up, and stop the browser
        with log.open("w") as file:
            self._process = subprocess.Popen([program, *options], stderr=file)
        end = time.monotonic() + SECONDS
        while not (found := re.search(r"WebDriver BiDi listening on (ws://\S+)\n", log.read_text())):
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                raise RuntimeError(f"{program} does not listen: {log.read_text()}")
            time.sleep(0.1)
        self._socket = websocket.create_connection(
            f"{found[1]}/session", suppress_origin=True, timeout=SECONDS
        )
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["network.beforeRequestSent", "log.entryAdded"])
        self._page = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method: str, **parameters: Any) -> Any:
        """A command's result; what is reported meanwhile is noted.

        Raises:
            RuntimeError: if Firefox refuses the command.
        """
        number = next(self._number)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != number:
            self._note(answer)
        if answer["type"] == "error":
            raise RuntimeError(f"{method}: {answer['message']}")
        return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "network.beforeRequestSent":
            url = told["request"]["url"]
            if not url.startswith((self.address, "data:", "blob:")):
                self.problems.append(f"outside request: {url}")
        elif told.get("level") == "error":
            self.problems.append(f"{told['type']}: {told['text']}")

    def visit(self, page: str, width: int, height: int, script: str = "() => {}") -> None:
        """Opens a page of the site at a size, with a script that runs before its own, and waits until it has loaded.

        Problems of the page before it are forgotten: what it was still loading is broken off.
        """
        self.ask("browsingContext.navigate", context=self._page, url="about:blank", wait="complete")
        self.problems.clear()
        self.ask(
            "browsingContext.setViewport",
            context=self._page,
            viewport={"width": width, "height": height},
        )
        added = self.ask("script.addPreloadScript", functionDeclaration=script)["script"]
        self.ask(
            "browsingContext.navigate", context=self._page, url=f"{self.address}{page}.html", wait="complete"
        )
        self.ask("script.removePreloadScript", script=added)

    def run(self, body: str) -> Any:
        """What a function body gives back on the page, by way of JSON; it may wait for promises.

        Raises:
            RuntimeError: if the script fails.
        """
        told = self.ask(
            "script.evaluate",
            expression=f"(async () => JSON.stringify((await (async () => {{ {body} }})()) ?? null))()",
            target={"context": self._page},
            awaitPromise=True,
        )
        if told["type"] == "exception":
            raise RuntimeError(told["exceptionDetails"]["text"])
        return json.loads(told["result"]["value"])

    def close(self) -> None:
        """Ends the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(SECONDS)
