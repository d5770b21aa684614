"""A trial of what training with several ranks does at each step: adding up a tensor over all of them.

One rank alone meets most of what keeps NCCL from working: its library, the driver, the GPU, and the network interfaces.
"""

import contextlib
import threading

_MOST_WORDS = 60


def try_collective(backend: str, device: str, seconds: float = 60.0) -> str:
    """Add up a tensor over one rank, this process, in a process group that is gone afterwards.

    Args:
        backend: torch.distributed's, such as nccl.
        device: where the tensor shall be, such as cuda:0.
        seconds: how long to wait for it.

    Returns:
        Why it does not work, in torch.distributed's words; "" when it does.
    """
    said: list[str] = []
    # A thread can be left behind when it hangs; NCCL's own time-out would end the whole process. And another process
    # would find no GPU where a site lets one process use it at a time.
    thread = threading.Thread(target=lambda: said.append(_add_up(backend, device)), daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else f"it has not ended after {seconds:.0f} s"


def _add_up(backend: str, device: str) -> str:
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return "this process is in another process group"
    try:
        store = dist.HashStore()  # type: ignore[attr-defined] # in memory
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        tensor = torch.arange(4.0, device=device)
        dist.all_reduce(tensor)
        # Waits for the GPU: only then is it known.
        total = tensor.sum().item()
    except Exception as error:  # of many kinds, each of which would end a training
        words = str(error).split() or [type(error).__name__]
        return " ".join(words[:_MOST_WORDS]) + (" ..." if len(words) > _MOST_WORDS else "")
    finally:
        if dist.is_initialized():
            with contextlib.suppress(Exception):
                dist.destroy_process_group()
    return "" if total == 6 else f"the sum is {total}, and should be 6"
