"""Any server that reads a folder, on what is cleared: verified copies of it, for as long as it may be served.

    python docs/examples/serve_with.py chat -- vllm serve {folder} --served-model-name chat

{folder} becomes a private folder of verified copies. When something else is to be served (a newer version was promoted,
or something was found against this one) the server is told to end (SIGTERM), and this ends with 75: started again, by
Kubernetes or systemd, it serves what is cleared then. Two of them behind one address go on serving meanwhile.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from trainwarden import serving
from trainwarden.errors import TrainWardenError

AGAIN = 75  # EX_TEMPFAIL
EVERY = 1.0  # seconds between looks


def build(files: serving.Files) -> serving.Files:
    """The files themselves: the server makes the model of them."""
    return files


def main() -> int:
    name, _, *command = sys.argv[1:]
    try:
        with serving.open(name, build) as service:
            version = service.current()
            with version.model.folder() as folder:
                print(f"serving {name} as {version.digest}", flush=True)
                return run(service, version.digest, [word.replace("{folder}", str(folder)) for word in command])
    except TrainWardenError as e:
        print(f"error: {e}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code


def run(service: serving.Service[serving.Files], digest: str, command: list[str]) -> int:
    """Run the server until it ends, or is not to serve this version any more."""
    server = subprocess.Popen(command, cwd=Path.cwd())
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    while True:
        with suppress(subprocess.TimeoutExpired):
            return server.wait(EVERY)
        if to_be_served(service) != digest:
            server.terminate()
            server.wait()
            return AGAIN


def to_be_served(service: serving.Service[serving.Files]) -> str:
    """The digest of what is to be served now, "" for nothing."""
    try:
        return service.current().digest
    except TrainWardenError as e:
        print(f"error: {e}\nhint: {e.hint}", file=sys.stderr)
        return ""


if __name__ == "__main__":
    sys.exit(main())
