"""A guarded run in a process of its own, whose job kills it and trains on: `watcher.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from recovering import Attacked, Job, patch, payload, settings

from trainwarden.keys import SigningKey
from trainwarden.store import Store

folder = Path(sys.argv[1])
job = Job(folder / "job", Store.open(folder / "store"), SigningKey.load_or_create(folder / "key"))
with pytest.MonkeyPatch.context() as context:
    patch(context)
    job.run(Attacked(job.library, [payload({5: "os.kill(os.getppid(), 9); time.sleep(600)"})]), settings())
