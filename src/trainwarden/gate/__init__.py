"""The gate in front of serving: what a file is, whether loading it can run anything, and loading what was cleared.

Rules
-----
* A scan never imports, executes or unpickles anything of a file; only `loader` imports torch, after a decision.
* Decisions are `Clean | Refused | Undecided`; what was not understood is `Undecided`, never clean.
* A clean file runs no code when it is loaded. Its numbers may still be an attacker's: they are replay's part.
"""
