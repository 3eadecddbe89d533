"""Training functions with torch: of several processes a trial, and on GPUs that are declared only."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from raytuner import Trial
from raytuner.training import devices


def learner(trial: Trial) -> None:
    """Learns at ``rate``, together: the state is the same on all ranks, and so is the file that each leaves."""
    learnt = torch.zeros(1)
    for _ in trial.steps(learnt=learnt):
        time.sleep(trial.config.get("pause", 0.0))
        parts = trial.reduce({"learnt": learnt.item() + trial.config["rate"], "ranks": trial.rank}, "sum")
        learnt.fill_(parts["learnt"] / trial.world_size)
        (trial.dir / f"rank-{trial.rank}.txt").write_text(f"{trial.step} {learnt.item():.6f}")
        trial.report(loss=-learnt.item(), learnt=learnt.item(), ranks=parts["ranks"])


def bad(trial: Trial) -> None:
    """In step 2 one rank does what ``way`` says, as the others wait for it."""
    for step in trial.steps(nothing=[1]):
        if step == 2 and trial.rank == trial.config["rank"]:
            match trial.config["way"]:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "raise":
                    raise ValueError("no such luck")
                case "hang":
                    time.sleep(600)
                case "return":
                    return
        trial.report(trial.reduce({"loss": 1.0 / step}))


def network(trial: Trial) -> None:
    """The usual loop, with dropout; leaves what each rank drew and how its model ended."""
    torch.manual_seed(3)
    model = trial.distribute(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    loader = DataLoader(data, batch_size=8, sampler=trial.sampler(data))
    for step in trial.steps(model=model, optimizer=optimizer):
        time.sleep(trial.config.get("pause", 0.0))
        total = 0.0
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() / len(loader)
        drawn = torch.rand(1).item()
        with Path(trial.dir, f"rank-{trial.rank}.txt").open("a") as log:
            norm = sum(p.norm().item() for p in model.parameters())
            log.write(f"{trial.attempt} {step} {drawn!r} {norm!r}\n")
        trial.report(trial.reduce({"loss": total}))


def network_test(trial: Trial) -> dict[str, float]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    trial.restore(model=model)
    return {"test_norm": sum(p.norm().item() for p in model.parameters()), "world": trial.world_size}


def hungry(trial: Trial) -> None:
    """Takes as much of a GPU of 24 GB as ``size`` says, as far as a process can see; fails where its share is less."""
    size = trial.config["size"]
    devices.peak_memory = lambda: (size * 10**9, 24 * 10**9)
    for step in trial.steps(nothing=[0]):
        if step == 2 and size > 24 * trial._spec.gpu:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        time.sleep(trial.config.get("seconds", 0.0))
        trial.report(loss=float(size))
