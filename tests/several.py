"""Several processes of one training, on this machine."""

import os
import socket

import torch
from torch import distributed, multiprocessing

PROCESSES = 2


def in_processes(worker, *args):
    """Call `worker(rank, *args)` in two processes that form a gloo group, and wait for both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_joined, (worker, port, args), nprocs=PROCESSES)


def _joined(rank, worker, port, args):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    worker(rank, *args)
    distributed.destroy_process_group()
