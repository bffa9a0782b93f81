"""File formats, independent of the strategies that use them: safetensors, HDF5, zarr, DCP."""
