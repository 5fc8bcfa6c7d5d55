"""The doctor knows what of a job's code does not replay in every way, and says what it could not look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from guarded_job import NOTHING

from trainwarden.audit.limits import LIMITS, Limit, look, met, used
from trainwarden.model import FileEntry, Manifest, Seal, canonical
from trainwarden.seal.manifest import make_manifest, manifest_ref
from trainwarden.store import Store

USES = {
    "loader workers that are kept": "DataLoader(d, num_workers=2, persistent_workers=True)",
    "torchdata `StatefulDataLoader`": "from torchdata.stateful_dataloader import StatefulDataLoader as L",
    "batches dispatched from the first rank (accelerate)": "DataLoaderConfiguration(dispatch_batches=True)",
    "data that is streamed from elsewhere": "load_dataset('c4', streaming=True)",
    "`torch.compile`": "import torch\nm = torch.compile(m)",
    "asynchronous checkpoints by a process of their own": "k = AsyncCheckpointerType.PROCESS",
    "checkpoints in remote storage": "from torch.distributed.checkpoint import FsspecWriter",
    "FSDP1 (`FullyShardedDataParallel`)": "from torch.distributed.fsdp import FullyShardedDataParallel as FSDP",
    "tensor parallelism": "parallelize_module(m, mesh, {})",
    "pipelines of stages, and RPC": "import torch.distributed.rpc as rpc",
    "weights in memory that processes share": "m.share_memory()",
    "Lightning with manual optimization": "self.manual_backward(loss)",
    "engines with optimizers of their own (DeepSpeed, Colossal-AI, Megatron-LM, fairscale)": "import megatron.core",
    "training without PyTorch (JAX, TensorFlow)": "import jax.numpy as jnp",
    "a framework's loop in a script that takes no checkpoint (`Trainer`, accelerate, Lightning)": (
        "from transformers import Trainer\nTrainer().train()"
    ),
}
PLAIN = (
    "import re, torch\nfrom torch.distributed.fsdp import fully_shard\nword = re.compile('x'); m.compile()\n"
    "loader = torch.utils.data.DataLoader(d, persistent_workers=False, num_workers=2)\n"
    "load_dataset('x', streaming=False)\n"
    "print('torch.compile, StatefulDataLoader')  # deepspeed\nTrainingArguments('out', fsdp=None)\n"
)


def features(source: str) -> list[str]:
    return [m.limit.feature for m in met(dict(used(source.encode())))]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.words[0])
def test_each_limit_is_met_by_code_that_uses_its_feature(limit: Limit) -> None:
    assert features(USES[limit.feature]) == [limit.feature]


def test_code_that_uses_none_of_them_or_only_names_them_in_text_meets_no_limit() -> None:
    assert features(PLAIN) == []


@pytest.mark.parametrize(
    "resumes", ["t.train(resume_from_checkpoint=a.resume)", "t.fit(m, ckpt_path=a.ckpt)", "acc.load_state(a.folder)"]
)
def test_a_script_that_hands_the_checkpoint_on_is_not_said_to_begin_anew(resumes: str) -> None:
    source = "import lightning\nfrom transformers import Trainer\n"
    assert "takes no checkpoint" in features(source + "t.fit(m, ckpt_path=None)")[0]
    assert features(source + resumes) == []


def test_the_place_is_that_of_the_first_use() -> None:
    (found,) = met(
        {w: f"train.py:{line}" for w, line in used(b"import torch\n\nf = torch.compile\ng = torch.compile\n")}
    )
    assert found.place == "train.py:3"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(tmp_path / "store", create=True)
    yield made
    made.close()


def sealed(store: Store, sources: dict[str, bytes], lost: str = "") -> Seal:
    entries = [
        FileEntry(path=name, digest=store.put_bytes(source), size=len(source)) for name, source in sources.items()
    ]
    entries = [msgspec.structs.replace(e, digest="0" * 64) if e.path == lost else e for e in entries]
    code = make_manifest("code", {"/job": entries})
    nothing: dict[str, Manifest] = {m.kind: m for m in NOTHING}
    for manifest in (code, *NOTHING):
        store.put_bytes(canonical(manifest))
    refs = {kind: manifest_ref(m) for kind, m in (nothing | {"code": code}).items()}
    return Seal(created_ns=0, argv=("python",), cwd="/job", interpreter="python", **refs)  # type: ignore[arg-type]


def test_only_sealed_sources_are_looked_at_and_what_cannot_be_read_is_said(store: Store) -> None:
    sources = {
        "train.py": b"import loaders\n",
        "lib/loaders.py": b"x = 1\ny = DataLoader(d, persistent_workers=True)\n",
        "old.py": b"print 'of another Python'\n",
        "gone.py": b"import jax\n",
        "notes.txt": b"import tensorflow\n",
    }
    found = look(store, sealed(store, sources, lost="gone.py"))
    assert [(m.limit.words[0], m.place) for m in found.met] == [("persistent_workers=True", "lib/loaders.py:2")]
    assert (found.files, found.unread) == (2, ("gone.py", "old.py"))
