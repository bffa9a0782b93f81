"""A storage layer for torch.distributed.checkpoint (DCP): its file format at the disk's speed, durable and atomic.

    dcp.save(state, storage_writer=DirectWriter(path))
    dcp.load(state, storage_reader=DirectReader(path))

PyTorch's `FileSystemReader` reads what `DirectWriter` writes, and `DirectReader` what PyTorch's writers write.
"""

from ckpt.dcp.reader import DirectReader
from ckpt.dcp.writer import DirectWriter

__all__ = ["DirectReader", "DirectWriter"]
