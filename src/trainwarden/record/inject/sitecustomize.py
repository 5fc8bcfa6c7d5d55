"""Runs at the start of every Python process below `trainwarden run`: arms the recorder, then steps aside.

Only the standard library is used here, and nothing is imported from the environment under guard: the package is
loaded from the folder that the watcher names, so that the watcher's own code records, whatever is installed.
Any failure leaves the process as it would have been without us; the watcher sees that nobody came.
"""

import os
import sys


def _chain() -> None:
    """Run the environment's own sitecustomize, which our folder shadows."""
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))
    rest = [p for p in sys.path if os.path.abspath(p or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _arm() -> None:
    import importlib.util

    source = os.environ["TRAINWARDEN_SOURCE"]
    spec = importlib.util.spec_from_file_location(
        "trainwarden",
        os.path.join(source, "trainwarden", "__init__.py"),
        submodule_search_locations=[os.path.join(source, "trainwarden")],
    )
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["trainwarden"] = module
    spec.loader.exec_module(module)
    from trainwarden.record import bootstrap

    bootstrap.arm()


if os.environ.get("TRAINWARDEN_SOCKET") and os.environ.get("TRAINWARDEN_SOURCE"):
    try:
        _arm()
    except Exception as e:  # noqa: BLE001  the recorder fails open
        if sys.stderr is not None and not sys.stderr.closed:
            print(f"trainwarden: the recorder did not start: {e!r}", file=sys.stderr)

try:
    _chain()
except ImportError:
    pass
