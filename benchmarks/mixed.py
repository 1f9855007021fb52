"""Bits per layer, by Lagrange on damage and measured length, against one precision for all.

    python benchmarks/mixed.py resnet20 "as trained" 0.06
    python benchmarks/mixed.py digits "as trained" 0.05
"""
# ruff: noqa
import sys, json, time, copy
import numpy as np, torch
import common, tasks
from flexrel import prune, PruneOptions, Bytes, Sparsity
from flexrel.core.distance import Divergence
from flexrel.core.division import fitted_and_judged
from flexrel.core.precision import _on_grid, shortened, stored
from flexrel.core.running import duplicate
from flexrel.repair import closed_form
from flexrel.io import encode
import flexrel_edge
network, use, shares = sys.argv[1], sys.argv[2], list(map(float, sys.argv[3].split(',')))
BITS=(3,4,5,6,8)
LARGEST={b:2**(b-1)-1 for b in BITS}
task = tasks.digits() if network=='digits' else tasks.task(network, use, 0)
fitted, judged = fitted_and_judged(task.inputs, task.model)
div = Divergence(task.model, judged, task.choose.outputs)
opts = PruneOptions(outputs=task.choose.outputs, effort='fast')
dense_bytes = len(encode(task.model))
old=closed_form._refit_
CHOICE={}
def refit(pruned, use, call, rows, largest, near):
    return old(pruned, use, call, rows, CHOICE.get(use.name, largest) if largest else largest, near)
closed_form._refit_=refit
def matrices(model):
    return {n:p for n,p in model.state_dict().items() if p.is_floating_point() and p.ndim>1}
def rounded(model, bits):
    """bits: weight name -> bits"""
    made=duplicate(model)
    CHOICE.clear(); CHOICE.update({n.removesuffix('.weight'): LARGEST[b] for n,b in bits.items()})
    closed_form.reconstruct_(made, duplicate(model), None, fitted, lambda *_:None, largest=127)
    CHOICE.clear()
    with torch.no_grad():
        for n,t in made.state_dict().items():
            if not t.is_floating_point(): continue
            if t.ndim<2: t.copy_(shortened(t)); continue
            t.copy_(_on_grid(t.float(), LARGEST[bits.get(n,8)], t.dtype))
    return made
def size_of(t): return len(flexrel_edge.encode({'x':t.detach().contiguous().numpy()}, metadata={}))
def table(model):
    names=list(matrices(model)); base=div(model)
    damage,rate={}, {}
    for n in names:
        for b in BITS:
            one=duplicate(model); t=one.state_dict()[n]
            with torch.no_grad(): t.copy_(_on_grid(t.float(), LARGEST[b], t.dtype))
            damage[n,b]=max(div(one)-base,0.0); rate[n,b]=size_of(t)
    return damage, rate
def lagrange(damage, rate, lam):
    names={n for n,_ in damage}
    return {n: min(BITS, key=lambda b: damage[n,b]+lam*rate[n,b]) for n in names}
def mixed(model, limit):
    damage,rate=table(model); t0=time.time()
    lo,hi=-20.0,2.0; best=None
    for _ in range(9):
        mid=(lo+hi)/2; bits=lagrange(damage,rate,10**mid); made=rounded(model,bits); size=len(encode(made))
        if size<=limit: hi=mid; best=(made,bits,size)
        else: lo=mid
        if best and best[2]>.985*limit: break
    return best
def score(m): h=task.test(m); return float(task.test.score(h)), len(h)
print(network,use,'dense',dense_bytes,score(task.model),flush=True)
for share in shares:
    limit=int(share*dense_bytes); t=time.time()
    for v in ('int8','int4'):
        try:
            r=prune(task.model, calibration=task.inputs, budgets=[Bytes(limit)], granularity='element', values=v, options=opts)
            print(share,limit,v,'bytes',r.achieved.bytes,'sparsity',round(r.achieved.removed,3),'div',round(r.achieved.divergence,5),'score',score(r.model)[0],f'{time.time()-t:.0f}s',flush=True)
            last=r
        except Exception as e: print(share,v,type(e).__name__,e,flush=True); continue
        if v=='int8': s8=r.achieved.removed
        else: s4=r.achieved.removed
    for w in (0.0,0.33,0.67,1.0):
        s=s4+(s8-s4)*w
        base=prune(task.model, calibration=task.inputs, budgets=[Sparsity(s)], granularity='element', options=opts).model
        for b in (5,6):
            made=rounded(base,{n:b for n in matrices(base)})
            print(share,'  uniform',b,'at',round(s,3),'bytes',len(encode(made)),'div',round(div(made),5),'score',score(made)[0],flush=True)
        got=mixed(base,limit)
        if got is None: print(share,'  mixed at',round(s,3),'does not fit',flush=True); continue
        made,bits,size=got
        print(share,'  mixed at',round(s,3),'bytes',size,'div',round(div(made),5),'score',score(made)[0],'bits',sorted(bits.values()),f'{time.time()-t:.0f}s',flush=True)
