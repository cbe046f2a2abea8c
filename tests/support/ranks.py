"""Functions on several gloo ranks, forked from the test's process: nothing is imported again."""

import multiprocessing as mp

import torch
import torch.distributed as dist


def on_ranks(size, work, folder):
    """What `work(rank)` returns on each of `size` ranks of one process group."""

    def child(rank):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        torch.save(work(rank), folder / f"{rank}.pt")
        dist.destroy_process_group()

    processes = [mp.get_context("fork").Process(target=child, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]
