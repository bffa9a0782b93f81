"""What files look like, whoever writes them: safetensors, HDF5, zarr, DCP."""
