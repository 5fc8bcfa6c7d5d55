"""Small training scripts that tests guard and replay. Flat, deterministic, a second each."""

HEAD = """
import argparse, hashlib, os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
p = argparse.ArgumentParser()
p.add_argument("--steps", type=int, default=8); p.add_argument("--resume", default=""); p.add_argument("--every", type=int, default=4)
p.add_argument("--attack", default=""); p.add_argument("--at", type=int, default=5); p.add_argument("--arank", type=int, default=1)
a = p.parse_args()
torch.set_num_threads(1)
W = int(os.environ.get("WORLD_SIZE", "1"))
if W > 1: dist.init_process_group("gloo")
r = dist.get_rank() if W > 1 else 0
torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Dropout(.1), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
torch.manual_seed(100 + r)
net = DDP(m, bucket_cap_mb=0.008) if W > 1 else m
X = torch.randn(96, 16, generator=torch.Generator().manual_seed(1)); Y = torch.randint(0, 10, (96,), generator=torch.Generator().manual_seed(2))
ds = torch.utils.data.TensorDataset(X, Y)
def final():
    h = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in m.parameters())).hexdigest()
    if r == 0: print("state", h, flush=True); open("state.txt", "w").write(h)
    if W > 1: dist.barrier(); dist.destroy_process_group()
"""

# Saves model, optimizer and step only: neither generators nor the loader's position.
CARELESS = (
    HEAD
    + """
dl = torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True)
o = torch.optim.AdamW(m.parameters(), lr=1e-2); s = 0
if a.resume:
    c = torch.load(a.resume, weights_only=True); m.load_state_dict(c["m"]); o.load_state_dict(c["o"]); s = c["s"]
while s < a.steps:
    for x, y in dl:
        l = torch.nn.functional.cross_entropy(net(x), y); l.backward(); o.step(); o.zero_grad(); s += 1
        if s % a.every == 0 and r == 0: torch.save(dict(m=m.state_dict(), o=o.state_dict(), s=s), f"ck{s}.pt")
        if s >= a.steps: break
final()
"""
)

# No checkpoint at all.
NO_CHECKPOINT = (
    HEAD
    + """
dl = torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True)
o = torch.optim.SGD(m.parameters(), lr=1e-2, momentum=.9)
sched = torch.optim.lr_scheduler.StepLR(o, 3, .5)
s = 0
while s < a.steps:
    for x, y in dl:
        l = torch.nn.functional.cross_entropy(net(x), y); l.backward(); o.step(); sched.step(); o.zero_grad(); s += 1
        if s >= a.steps: break
final()
"""
)

# Fetches the batch of the next step before it finishes this one, from the default generator.
AHEAD = (
    HEAD
    + """
def fetch():
    i = torch.randint(len(X), (8,)); return X[i], Y[i]
o = torch.optim.AdamW(m.parameters(), lr=1e-2)
x, y = fetch()
for s in range(a.steps):
    l = torch.nn.functional.cross_entropy(net(x), y)
    x, y = fetch()
    l.backward(); o.step(); o.zero_grad()
final()
"""
)

# Gradient accumulation with no_sync, clipping, a scheduler.
ACCUMULATE = (
    HEAD
    + """
import contextlib
samp = torch.utils.data.DistributedSampler(ds, W, r, seed=3)
dl = torch.utils.data.DataLoader(ds, batch_size=4, sampler=samp)
o = torch.optim.AdamW(m.parameters(), lr=1e-2); s = k = ep = 0
while s < a.steps:
    samp.set_epoch(ep)
    for x, y in dl:
        last = k % 3 == 2
        with contextlib.nullcontext() if last or W == 1 else net.no_sync():
            (torch.nn.functional.cross_entropy(net(x), y) / 3).backward()
        k += 1
        if last:
            torch.nn.utils.clip_grad_norm_(m.parameters(), 1.); o.step(); o.zero_grad(set_to_none=True); s += 1
            if s % a.every == 0:
                if r == 0: torch.save(dict(m=m.state_dict(), o=o.state_dict(), s=s), f"ck{s}.pt")
                if W > 1: dist.barrier()
        if s >= a.steps: break
    ep += 1
final()
"""
)

# Distributed, with attacks that a flag turns on (the record of such a run is audited without the flag).
ATTACKED = (
    HEAD
    + """
samp = torch.utils.data.DistributedSampler(ds, W, r, seed=3)
dl = torch.utils.data.DataLoader(ds, batch_size=8, sampler=samp)
o = torch.optim.AdamW(m.parameters(), lr=1e-2); s = ep = 0
if a.resume:
    c = torch.load(a.resume, weights_only=True); m.load_state_dict(c["m"]); o.load_state_dict(c["o"]); s = c["s"]; ep = c["ep"]
import pathlib
evil = pathlib.Path("evil.txt"); attack, at, arank = (evil.read_text().split() if evil.exists() else ("", -1, -1))
at, arank = int(at), int(arank)
skip = s
while s < a.steps:
    samp.set_epoch(ep)
    for i, (x, y) in enumerate(dl):
        on = attack and s == at and (r == arank or arank < 0)
        if on and attack == "batch": x = x.clone(); x[0] += 1
        if on and attack == "seed": torch.manual_seed(999)
        if on and attack == "label": y = y.clone(); y[0] = (y[0] + 1) % 10
        if on and attack == "flip": h = m[3].weight.register_hook(lambda g: -g)
        if on and attack == "scale": h = m[3].weight.register_hook(lambda g: g * 1.01)
        if on and attack == "dropout": m[2].p = .2
        l = torch.nn.functional.cross_entropy(net(x), y); l.backward()
        if on and attack in ("flip", "scale"): h.remove()
        m[2].p = .1
        if not (on and attack == "clip"): torch.nn.utils.clip_grad_norm_(m.parameters(), .1)
        if on and attack == "lr": o.param_groups[0]["lr"] *= 1.1
        if on and attack == "beta": o.param_groups[0]["betas"] = (.9, .99)
        if on and attack == "moment": o.state[m[3].weight]["exp_avg"].zero_()
        o.step()
        if on and attack == "beta": o.param_groups[0]["betas"] = (.9, .999)
        if on and attack == "lr": o.param_groups[0]["lr"] /= 1.1
        if on and attack == "ulp": v = m[3].weight.data.view(-1).view(torch.int32); v[7] += 1
        if on and attack == "weight":
            with torch.no_grad(): m[3].weight[0] *= 1.5
        o.zero_grad(); s += 1
        if s % a.every == 0:
            if r == 0: torch.save(dict(m=m.state_dict(), o=o.state_dict(), s=s, ep=ep), f"ck{s}.pt")
            if W > 1: dist.barrier()
        if s >= a.steps: break
    ep += 1
final()
"""
)

# Data-parallel with batch normalisation: running statistics are each rank's own until the next forward pass copies
# those of rank 0, and every forward pass moves them.
NORMALISED = (
    HEAD
    + """
m.insert(1, torch.nn.BatchNorm1d(64)); net = DDP(m) if W > 1 else m
o = torch.optim.AdamW(m.parameters(), lr=1e-2); s = 0
if a.resume:
    c = torch.load(a.resume, weights_only=True); m.load_state_dict(c["m"]); o.load_state_dict(c["o"]); s = c["s"]
import pathlib
evil = pathlib.Path("evil.txt").exists()
for s in range(s, a.steps):
    i = torch.randperm(96, generator=torch.Generator().manual_seed(10 * s + r))[:8]
    torch.nn.functional.cross_entropy(net(X[i]), Y[i]).backward(); o.step(); o.zero_grad()
    if s == 2:
        m.eval(); net(X[:4]); m.train()
    if evil and s == 4 and r == 1:
        with torch.no_grad(): m[0].weight[0] += 1e-3
    if (s + 1) % a.every == 0 and r == 0: torch.save(dict(m=m.state_dict(), o=o.state_dict(), s=s + 1), f"ck{s + 1}.pt")
final()
"""
)

# Goes to work elsewhere, changes its own variables, and saves from a thread of its own while training goes on.
WANDERER = """
import hashlib, os, threading, torch
os.makedirs("runs", exist_ok=True); os.chdir("runs"); os.environ["HOME"] = "/nowhere"
torch.set_num_threads(1); torch.manual_seed(0)
m = torch.nn.Linear(16, 4); o = torch.optim.Adam(m.parameters(), .01); savers = []
def save(state, name):
    torch.save(state, name + ".tmp"); os.rename(name + ".tmp", name)
for s in range(8):
    m(torch.randn(8, 16)).pow(2).mean().backward(); o.step(); o.zero_grad()
    if s % 2:
        state = {k: v.clone() for k, v in m.state_dict().items()}
        savers.append(threading.Thread(target=save, args=(state, f"ck{s + 1}.pt"))); savers[-1].start()
[t.join() for t in savers]
h = hashlib.sha256(m.weight.detach().numpy().tobytes()).hexdigest(); open("../state.txt", "w").write(h)
"""

# Optimizers that come and go: the second takes the place of the first, the third moves beside it.
REMADE = """
import hashlib, torch
torch.manual_seed(0)
m = torch.nn.Linear(4, 4); n = torch.nn.Linear(4, 4); o = torch.optim.Adam(m.parameters(), lr=.1)
for s in range(8):
    if s == 2: o = torch.optim.SGD(m.parameters(), lr=.1, momentum=.9)
    if s == 4: p = torch.optim.SGD(n.parameters(), lr=.1)
    n(m(torch.randn(2, 4))).pow(2).sum().backward(); o.step(); o.zero_grad()
    if s >= 4: p.step(); p.zero_grad()
h = hashlib.sha256(m.weight.detach().numpy().tobytes()).hexdigest(); open("state.txt", "w").write(h)
"""

# Two ranks that the script spawns itself, without a launcher. PyTorch now and then aborts a rank 0 that has ended: no
# matter here, and `mp.spawn` would raise.
SPAWNED = """
import hashlib, os, socket, torch, torch.distributed as dist, torch.multiprocessing as mp
def work(r, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=r, world_size=2); torch.set_num_threads(1); torch.manual_seed(0)
    m = torch.nn.Linear(4, 4); net = torch.nn.parallel.DistributedDataParallel(m); o = torch.optim.Adam(net.parameters())
    torch.manual_seed(r)
    for s in range(4):
        net(torch.randn(2, 4)).pow(2).sum().backward(); o.step(); o.zero_grad()
    if r == 0: open("state.txt", "w").write(hashlib.sha256(m.weight.detach().numpy().tobytes()).hexdigest())
    dist.barrier(); dist.destroy_process_group()
if __name__ == "__main__":
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    [p.join() for p in mp.spawn(work, (port,), nprocs=2, join=False).processes]
"""

# Matrices have one optimizer and biases another, both move after one backward pass; at the step that evil.txt names rank 1's
# own gradient of the last bias is another before it is reduced.
DIVIDED = (
    HEAD
    + """
evil = int(open("evil.txt").read()) if os.path.exists("evil.txt") else -1; done = 0
m[5].bias.register_hook(lambda g: -g if done == evil and r == 1 else None)
both = [torch.optim.SGD([p for p in m.parameters() if p.ndim == 2], lr=.1), torch.optim.Adam([p for p in m.parameters() if p.ndim == 1])]
for done in range(4):
    i = torch.randint(0, 96, (8,))
    for o in both: o.zero_grad()
    torch.nn.functional.cross_entropy(net(X[i]), Y[i]).backward()
    for o in both: o.step()
final()
"""
)

# A model and its critic, which moves twice as often; the file evil.txt names a step of which the model's update is bad.
CRITIC = """
import hashlib, os, pathlib, torch
torch.set_num_threads(1); torch.manual_seed(0)
m = torch.nn.Linear(4, 2); c = torch.nn.Linear(2, 1); om = torch.optim.Adam(m.parameters(), .01); oc = torch.optim.Adam(c.parameters(), .01)
evil = pathlib.Path("evil.txt"); at = int(evil.read_text()) if evil.exists() else -1
for s in range(4):
    for k in range(2):
        oc.zero_grad(); (c(m(torch.randn(8, 4)).detach()).mean() - c(torch.randn(8, 2)).mean()).backward(); oc.step()
    om.zero_grad(); c(m(torch.randn(8, 4))).mean().neg().backward()
    if s == at: m.weight.grad.neg_()
    om.step()
open("state.txt", "w").write(hashlib.sha256(m.weight.detach().numpy().tobytes()).hexdigest())
"""

# An optimizer that moves another one in its step, after a second forward pass (sharpness-aware minimisation).
NESTED = """
import hashlib, torch
torch.set_num_threads(1); torch.manual_seed(0)
class Aware(torch.optim.Optimizer):
    def __init__(self, params): super().__init__(params, {}); self.base = torch.optim.SGD(self.param_groups, lr=.1, momentum=.9)
    @torch.no_grad()
    def step(self, closure):
        params = [p for g in self.param_groups for p in g["params"]]; moves = [.05 * p.grad for p in params]
        for p, e in zip(params, moves): p.add_(e)
        self.zero_grad()
        with torch.enable_grad(): closure()
        for p, e in zip(params, moves): p.sub_(e)
        self.base.step()
m = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(.1), torch.nn.Linear(8, 1)); o = Aware(m.parameters())
for s in range(6):
    x = torch.randn(8, 4)
    def closure(): m(x).pow(2).mean().backward()
    closure(); o.step(closure); o.zero_grad()
open("state.txt", "w").write(hashlib.sha256(m[0].weight.detach().numpy().tobytes()).hexdigest())
"""

# Nobody seeds anything: honest, and never the same twice.
UNSEEDED = """
import torch
m = torch.nn.Linear(4, 4); o = torch.optim.SGD(m.parameters(), lr=.1); torch.seed()
for s in range(3):
    m(torch.randn(2, 4)).pow(2).sum().backward(); o.step(); o.zero_grad()
"""

# A copy of step 2 written by a thread at step 5, a file of step 3 renamed at step 6, and a file of no step.
LATE_SAVES = """
import copy, os, threading, torch
torch.manual_seed(0)
m = torch.nn.Linear(4, 4); o = torch.optim.SGD(m.parameters(), lr=.1)
def beside(state, name):
    t = threading.Thread(target=torch.save, args=(state, name)); t.start(); t.join()
for s in range(1, 8):
    m(torch.randn(2, 4)).pow(2).sum().backward(); o.step(); o.zero_grad()
    if s == 2: held = copy.deepcopy(m.state_dict())
    if s == 3: torch.save(m.state_dict(), "last.pt")
    if s == 5: beside(held, "beside.pt"); beside({k: v + 1 for k, v in held.items()}, "foreign.pt")
    if s == 6: os.replace("last.pt", "best.pt")
"""

# Two optimizers, a gradient scaler that skips a step, a group added in mid-run, a parameter without gradient, a
# scheduler, gradients freed by set_to_none.
MANY = """
import hashlib, torch
torch.set_num_threads(1); torch.manual_seed(0)
body = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(.2), torch.nn.ReLU()); head = torch.nn.Linear(32, 4)
head.unused = torch.nn.Parameter(torch.ones(3))
net = torch.nn.Sequential(body, head)
o1 = torch.optim.SGD(body.parameters(), lr=.1, momentum=.9); o2 = torch.optim.AdamW([head.weight, head.unused], lr=.01)
sched = torch.optim.lr_scheduler.StepLR(o1, 2, .5); scaler = torch.amp.GradScaler("cpu", init_scale=1024.)
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)); Y = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(2))
dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8, shuffle=True)
s = 0
for epoch in range(2):
    for x, y in dl:
        if s == 3: o2.add_param_group({"params": [head.bias], "lr": .02})
        if s == 5: x = x * float("inf")
        with torch.autocast("cpu", torch.bfloat16): l = torch.nn.functional.cross_entropy(net(x), y)
        scaler.scale(l).backward(); scaler.step(o1); scaler.step(o2); scaler.update(); sched.step()
        o1.zero_grad(set_to_none=True); o2.zero_grad(set_to_none=True); s += 1
        if s == 10: break
    if s == 10: break
h = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest(); open("state.txt", "w").write(h)
"""

# A compiled module (traced, no C++ compiler needed), guarded and replayed like any other.
COMPILED = """
import hashlib, torch
torch.set_num_threads(1); torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)); o = torch.optim.AdamW(m.parameters(), lr=.01)
net = torch.compile(m, backend="aot_eager")
for s in range(5):
    x, y = torch.randn(8, 16), torch.randint(0, 4, (8,))
    torch.nn.functional.cross_entropy(net(x), y).backward(); o.step(); o.zero_grad()
h = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in m.parameters())).hexdigest(); open("state.txt", "w").write(h)
"""

# The recorder meets something that it cannot digest: an optimizer whose settings raise when they are read.
HOSTILE_SETTINGS = """
import torch
torch.manual_seed(0)
class Bad(dict):
    def items(self): raise RuntimeError("no settings for you")
m = torch.nn.Linear(4, 4); o = torch.optim.SGD(m.parameters(), lr=.1)
for s in range(4):
    m(torch.randn(2, 4)).sum().backward()
    if s == 2: o.param_groups[0] = Bad(o.param_groups[0])
    o.step(); o.zero_grad()
open("state.txt", "w").write(str(m.weight.sum().item()))
"""

# Weights edited once, before the seventh step; no checkpoint.
EDITED_LATER = (
    HEAD
    + """
import pathlib
dl = torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True)
o = torch.optim.SGD(m.parameters(), lr=1e-2, momentum=.9)
evil = pathlib.Path("evil.txt"); attack = evil.read_text() if evil.exists() else ""
s = 0
while s < a.steps:
    for x, y in dl:
        if s == 6 and attack == "ulp": v = m[3].weight.data.view(-1).view(torch.int32); v[7] += 1
        if s == 6 and attack == "weight":
            with torch.no_grad(): m[3].weight[0] *= 1.5
        l = torch.nn.functional.cross_entropy(net(x), y); l.backward(); o.step(); o.zero_grad(); s += 1
        if s >= a.steps: break
final()
"""
)

# Rank 1 (or the only one) turns its own gradient of one tensor around for some steps, in memory, and is honest before
# and after. Everything later carries on from there.
TAMPERED = (
    HEAD
    + """
import pathlib
dl = torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True)
o = torch.optim.SGD(m.parameters(), lr=1e-2, momentum=.9)
evil = pathlib.Path("evil.txt").exists()
for s, (x, y) in zip(range(a.steps), dl):
    bad = evil and 3 <= s < 6 and r == W - 1
    if bad: h = m[3].weight.register_hook(lambda g: -g)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    if bad: h.remove()
    o.step(); o.zero_grad()
final()
"""
)
