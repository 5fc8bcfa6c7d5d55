"""One module a verb of the command line: `add(subparsers)` declares it, `run(args)` returns the exit code.

Rules
-----
* Only these modules and `cli.py` print to the terminal or choose an exit code; the library raises.
* Results go to stdout (one JSON object with `--json`), progress and remarks to stderr.
* Modules below a verb are imported inside `run`, so that `trainwarden -h` stays instant.
"""
