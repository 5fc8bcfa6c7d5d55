"""Calls that leave a harmless mark, the file `fired` in the working folder, each by another way in."""

from __future__ import annotations

from tests.gate.corpus.assemble import Call, Ref, call

MARK = "fired"
_TOUCH = "open('fired','w').close()"
_SHELL = "touch fired"

GADGETS: dict[str, Call] = {
    "os-system": call("os:system", _SHELL),
    "posix-system": call("posix:system", _SHELL),
    "os-popen": call("os:popen", _SHELL),
    "os-mkdir": call("os:mkdir", MARK),
    "os-makedirs": call("os:makedirs", MARK),
    "os-rename": call("os:rename", "seed", MARK),
    "os-replace": call("os:replace", "seed", MARK),
    "os-link": call("os:link", "seed", MARK),
    "os-symlink": call("os:symlink", "seed", MARK),
    "os-mkfifo": call("os:mkfifo", MARK),
    "os-mknod": call("os:mknod", MARK),
    "os-open": call("os:open", MARK, 65),
    "posix-open": call("posix:open", MARK, 65),
    "posix-mkdir": call("posix:mkdir", MARK),
    "os-spawnlp": call("os:spawnlp", 0, "touch", "touch", MARK),
    "os-posix-spawn": call("os:posix_spawnp", "touch", ["touch", MARK], {}),
    "os-execvp": call("os:execvp", "touch", ["touch", MARK]),
    "os-truncate-open": call("_io:open", MARK, "w"),
    "subprocess-call": call("subprocess:call", ["touch", MARK]),
    "subprocess-run": call("subprocess:run", ["touch", MARK]),
    "subprocess-popen": call("subprocess:Popen", ["touch", MARK]),
    "subprocess-check-call": call("subprocess:check_call", ["touch", MARK]),
    "subprocess-check-output": call("subprocess:check_output", ["touch", MARK]),
    "subprocess-getoutput": call("subprocess:getoutput", _SHELL),
    "subprocess-getstatusoutput": call("subprocess:getstatusoutput", _SHELL),
    "builtins-exec": call("builtins:exec", _TOUCH),
    "builtins-eval": call("builtins:eval", _TOUCH),
    "builtins-open": call("builtins:open", MARK, "w"),
    "builtins-getattr": Call(
        Call(Ref("builtins", "getattr"), (Call(Ref("builtins", "__import__"), ("os",)), "mkdir")), (MARK,)
    ),
    "builtins-compile": Call(Ref("builtins", "exec"), (call("builtins:compile", _TOUCH, "x", "exec"),)),
    "builtins-import": call("builtins:__import__", "planted"),
    "importlib-import": call("importlib:import_module", "planted"),
    "importlib-bootstrap": call("importlib._bootstrap:_gcd_import", "planted"),
    "pydoc-locate": call("pydoc:locate", "planted"),
    "pydoc-pipepager": call("pydoc:pipepager", "x", _SHELL),
    "pkgutil-resolve": call("pkgutil:resolve_name", "planted"),
    "runpy-run-path": call("runpy:run_path", "planted.py"),
    "runpy-run-module": call("runpy:run_module", "planted"),
    "runpy-run-code": call("runpy:_run_code", _TOUCH, {}),
    "code-interpreter": Call(
        call("operator:methodcaller", "runsource", _TOUCH), (call("code:InteractiveInterpreter"),)
    ),
    "operator-attrgetter": Call(
        Call(call("operator:attrgetter", "mkdir"), (call("builtins:__import__", "os"),)), (MARK,)
    ),
    "functools-partial": Call(call("functools:partial", Ref("os", "mkdir"), MARK), ()),
    "functools-reduce": call("functools:reduce", Ref("os", "open"), [MARK, 65]),
    "map-list": call("builtins:list", call("builtins:map", Ref("os", "mkdir"), [MARK])),
    "filter-set": call("builtins:set", call("builtins:filter", Ref("os", "mkdir"), [MARK])),
    "collections-deque-map": call("collections:deque", call("builtins:map", Ref("os", "mkdir"), [MARK])),
    "ordereddict-map": call("collections:OrderedDict", call("builtins:map", Ref("os", "mkdir"), [MARK])),
    "timeit": call("timeit:timeit", _TOUCH, "pass", Ref("time", "time"), 1),
    "cprofile": call("cProfile:run", _TOUCH),
    "profile": call("profile:run", _TOUCH),
    "bdb": Call(call("operator:methodcaller", "run", _TOUCH), (call("bdb:Bdb"),)),
    "trace": Call(call("operator:methodcaller", "run", _TOUCH), (call("trace:Trace"),)),
    "pdb": Call(call("operator:methodcaller", "runctx", _TOUCH, {}, {}), (call("bdb:Bdb"),)),
    "pickle-loads": call("pickle:loads", b"cos\nmkdir\n(S'fired'\ntR."),
    "c-pickle-loads": call("_pickle:loads", b"cos\nmkdir\n(S'fired'\ntR."),
    "uuid-command": call("uuid:_get_command_stdout", "touch", MARK),
    "pty-spawn": call("pty:spawn", ["touch", MARK]),
    "imaplib-stream": call("imaplib:IMAP4_stream", _SHELL),
    "ctypes-cdll": Call(call("operator:attrgetter", "system"), (call("ctypes:CDLL", None),)),
    "logging-handler": call("logging:FileHandler", MARK),
    "io-fileio": call("_io:FileIO", MARK, "w"),
    "codecs-open": call("codecs:open", MARK, "w"),
    "gzip-open": call("gzip:open", MARK, "w"),
    "bz2-open": call("bz2:open", MARK, "w"),
    "lzma-open": call("lzma:open", MARK, "w"),
    "zipfile": call("zipfile:ZipFile", MARK, "w"),
    "tarfile": call("tarfile:open", MARK, "w"),
    "sqlite": call("sqlite3:connect", MARK),
    "shelve": call("shelve:open", "./fired"),
    "shutil-copy": call("shutil:copy", "seed", MARK),
    "shutil-copyfile": call("shutil:copyfile", "seed", MARK),
    "shutil-move": call("shutil:move", "seed", MARK),
    "numpy-save": call("numpy:save", "./fired", 1),
    "numpy-savetxt": call("numpy:savetxt", MARK, [1.0]),
    "numpy-memmap": call("numpy:memmap", MARK, "uint8", "w+", 0, (1,)),
    "torch-save": call("torch:save", {"a": 1}, MARK),
    "torch-serialization-save": call("torch.serialization:save", {"a": 1}, MARK),
    "site-addpackage": call("site:addpackage", ".", "planted.pth", []),
    "doctest": call("doctest:run_docstring_examples", Ref("planted_doc", "f"), {}),
    "types-function": Call(Ref("builtins", "exec"), (_TOUCH, {})),
    "tempfile": call("tempfile:NamedTemporaryFile", "w", -1, None, None, "", "fired", ".", False),
    "pathlib-touch": Call(call("operator:methodcaller", "touch"), (call("pathlib:PosixPath", MARK),)),
    "pathlib-unbound": call("pathlib:Path.touch", call("pathlib:PosixPath", MARK)),
    "multiprocessing": call("multiprocessing.util:spawnv_passfds", b"/bin/touch", [b"touch", b"fired"], []),
    "atexit": call("atexit:register", Ref("os", "mkdir"), MARK),
    "signal-free-exec": call("concurrent.futures.thread:ThreadPoolExecutor", 1, "", Ref("os", "mkdir"), (MARK,)),
    "manual-seed": call("torch.random:manual_seed", 7),
    "rebinds-cross-entropy": call("builtins:setattr", Ref("torch.nn", "functional"), "cross_entropy", None),
}
for _dead in ("types-function", "ctypes-cdll", "signal-free-exec"):  # like another, or nothing calls them
    del GADGETS[_dead]

PLANTED = {
    "seed": "",
    "planted.py": "open('fired', 'w').close()\n",
    "planted.pth": "import os; os.mkdir('fired')\n",
    "planted_doc.py": 'def f():\n    """\n    >>> import os; os.mkdir(\'fired\')\n    """\n',
}
