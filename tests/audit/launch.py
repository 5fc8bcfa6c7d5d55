"""A tiny launcher for tests: `launch.py WORLD script.py …` starts WORLD ranks on loopback and exits as the worst."""

import os
import socket
import subprocess
import sys

world = int(sys.argv[1])
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
ranks = []
for rank in range(world):
    env = dict(os.environ)
    if world > 1:
        env |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks.append(subprocess.Popen([sys.executable, *sys.argv[2:]], env=env))
sys.exit(max(r.wait() for r in ranks))
