"""Two nodes on loopback: an elastic agent each, in a process group of its own, one rank each."""

import os
import signal
import socket
import subprocess
import sys

with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"]
words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
agents = [subprocess.Popen([*words, "--node-rank", str(n), *sys.argv[1:]], start_new_session=True) for n in (0, 1)]
signal.signal(signal.SIGTERM, lambda *_: [os.killpg(agent.pid, 9) for agent in agents] and None)
sys.exit(max(abs(agent.wait()) for agent in agents))
