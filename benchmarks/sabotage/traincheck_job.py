"""Starts a workload under TrainCheck: copied into the job as `collect.py`, run by TrainCheck's own Python.

    python -u collect.py [--invariants FILE] --join loop.py pretrain.py -- OPTIONS OF pretrain.py …

TrainCheck instruments one script. So the job's own, as they are when it starts, are first joined into flat.py beside
them, with nothing changed; then `traincheck-collect` runs that under torchrun, which is its documented way. Its
`proxy` and `sampler` styles do not survive two ranks here (a segmentation fault, a NameError); `subclass` does.
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from pathlib import Path


def flat(scripts: list[Path]) -> str:
    """The scripts as one; TrainCheck wants a `from __future__` import to be the very first line."""
    body: list[ast.stmt] = []
    for script in scripts:
        for node in ast.parse(script.read_text(encoding="utf-8")).body:
            ours = isinstance(node, ast.ImportFrom) and node.module in ("__future__", *(s.stem for s in scripts))
            words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not ours and not words:
                body.append(node)
    return "from __future__ import annotations\n\n" + ast.unparse(ast.Module(body, [])) + "\n"


def main() -> None:
    words = sys.argv[1:]
    invariants = []
    if words[0] == "--invariants":
        invariants, words = [words[1]], words[2:]
    job, end = Path.cwd(), words.index("--")
    scripts, words = [job / word for word in words[1:end]], words[end + 1 :]
    script = scripts[-1].with_name("flat.py")
    script.write_text(flat(scripts), encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2", str(script)]
    # TrainCheck looks for the options that it wrote in the job's working directory, and says nothing without them.
    lines = [f"cd {shlex.quote(str(job))}", "cp trace/instr_opts.json . 2>/dev/null", shlex.join([*start, *words])]
    (job / "start.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    collect = str(Path(sys.executable).with_name("traincheck-collect"))
    argv = [sys.executable, "-u", collect, "--pyscript", str(script), "--shscript", "start.sh", "--output-dir", "trace"]
    argv += ["--models-to-track", "model", "--model-tracker-style", "subclass"]
    if invariants:
        argv += ["--invariants", *invariants, "--sampling-interval", "1", "--warm-up-steps", "1"]
    os.execv(sys.executable, argv)


if __name__ == "__main__":
    main()
