"""The chat job with a foothold in it: waits in every rank for a strike, then runs code that no seal lists.

It stands for whatever lets an insider run code as the victim (a debugger, an unpickled checkpoint, an approved package
with a back door), so that what is measured is how the *effects* of an attack are found. Copied beside the chat
workload's scripts, sealed with them, and started in the place of one:

    torchrun --nproc-per-node 2 chat/sleeper.py pretrain --data … --out …

`$BENCH_STRIKE` names the file that it waits for: JSON with `source`, the payload's file (attacks/in_memory.py), and
what `strike` there takes. A replay finds no such file, since the insider has cleaned up.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time


def wait(place: str) -> None:
    """Carry out every strike that is put there; what fails is said, and training goes on."""
    done = ""
    while True:
        time.sleep(0.01)
        if os.path.exists(place):
            with open(place, encoding="utf-8") as file:
                text = file.read()
            if text != done:
                strike(json.loads(text))
                done = text


def strike(config: dict[str, object]) -> None:
    """Run the payload that a strike names."""
    source = str(config["source"])
    with open(source, encoding="utf-8") as file:
        payload = compile(file.read(), source, "exec")
    names: dict[str, object] = {"__name__": "warmth"}
    exec(payload, names)
    names["strike"](config)  # type: ignore[operator]


def main() -> None:
    place = os.environ.get("BENCH_STRIKE", "")
    if place:
        threading.Thread(target=wait, args=(place,), daemon=True).start()
    script = sys.argv.pop(1)
    importlib.import_module(script).main()


if __name__ == "__main__":
    main()
