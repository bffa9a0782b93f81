"""Every strategy under the tests of `ckpt.testing`. A new strategy adds one class of two lines at the end."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar, get_type_hints

import pytest

from ckpt.formats import safetensors_plan
from ckpt.registry import names, strategy_class
from ckpt.strategies import (
    hdf5,
    tensorstore_ocdbt,
    tensorstore_t5x,
    tensorstore_t5x_real,
    tensorstore_tuned,
    zarr_python,
)
from support.choices import choices
from support.contract import ORBAX_LEAVES_EARLY, Contract


@pytest.mark.every_filesystem
class TestTorchSave(Contract):
    """torch.save."""

    name = "torch_save"


class TestTorchSaveMapped(Contract):
    """torch.save without checksums, loaded through a mapping, with anything that a pickle may hold."""

    name, options = "torch_save", {"crc": False, "mmap": True, "weights_only": False}


class TestSafetensorsFile(Contract):
    """safetensors in one file."""

    name = "safetensors_file"


class TestSafetensorsFileShards(Contract):
    """The same in shards, so small that the tests' tensors have many of them."""

    name, options = "safetensors_file", {"shard_mib": 1}

    @pytest.fixture(autouse=True)
    def _small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(safetensors_plan, "MIB", 300)


class TestTorchDcp(Contract):
    """DCP's file system writer."""

    name = "torch_dcp"


class TestTorchDcpThreads(Contract):
    """The same with two threads, and so two files."""

    name, options = "torch_dcp", {"thread_count": 2}


class TestTorchDcpFilePerTensor(Contract):
    """The same with a file per tensor."""

    name, options = "torch_dcp", {"thread_count": 2, "single_file_per_rank": False}


class TestTorchDcpSafetensors(Contract):
    """DCP's Hugging Face writer."""

    name, options = "torch_dcp", {"serialization": "safetensors"}


class TestTorchDcpSafetensorsFilePerTensor(Contract):
    """The same with a file per tensor."""

    name = "torch_dcp"
    options: ClassVar = {"thread_count": 2, "single_file_per_rank": False, "serialization": "safetensors"}


class TestTorchDcpDirect(Contract):
    """DCP's files by this package's storage layer."""

    name = "torch_dcp_direct"


class TestTorchDcpDirectFiles(Contract):
    """The same with two files, verified, through the page cache."""

    name = "torch_dcp_direct"
    options: ClassVar = {"files": 2, "verify": True, "direct": False, "threads": 3}


class TestTorchDcpDirectWithoutChecksums(Contract):
    """The same without checksums, past the page cache in any case."""

    name, options = "torch_dcp_direct", {"checksum": False, "block_mib": 1, "direct": True}


class TestTensorstoreBasic(Contract):
    """The basic TensorStore of the original OpenLLaMA-3B comparison."""

    name = "tensorstore_basic"


class TestTensorstoreBasicUncompressed(Contract):
    """The same without a compressor."""

    name, options = "tensorstore_basic", {"compressor": "none"}


class TestTensorstoreT5x(Contract):
    """The T5X TensorStore of the original OpenLLaMA-3B comparison."""

    name = "tensorstore_t5x"


class TestTensorstoreT5xManyChunks(Contract):
    """The same with chunks so small that the tests' tensors have many of them."""

    name = "tensorstore_t5x"

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorstore_t5x, "_TARGET_CHUNK_BYTES", 4000)


@pytest.mark.every_filesystem
class TestSafetensorsTuned(Contract):
    """Our safetensors."""

    name = "safetensors_tuned"


class TestSafetensorsTunedSharded(Contract):
    """The same in several files, each tensor in one, verified, past the page cache."""

    name = "safetensors_tuned"
    options: ClassVar = {"shard_mib": 1, "verify": True, "threads": 1, "block_mib": 1, "direct": True}

    @pytest.fixture(autouse=True)
    def _small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(safetensors_plan, "MIB", 1000)


class TestSafetensorsTunedUnchecked(Contract):
    """The same without checksums, through the page cache."""

    name, options = "safetensors_tuned", {"checksum": False, "direct": False}


@pytest.mark.every_filesystem
class TestTensorstoreTuned(Contract):
    """TensorStore as it can be."""

    name = "tensorstore_tuned"


class TestTensorstoreTunedCompressed(Contract):
    """The same, compressed, with checksums, in types that zarr-python has, read past the page cache."""

    name = "tensorstore_tuned"
    options: ClassVar = {"compression": "zstd", "crc32c": True, "plain_types": True, "direct": True}


class TestTensorstoreTunedSharded(Contract):
    """The same in shards, with chunks so small that the tests' tensors have many of them, through the page cache."""

    name, options = "tensorstore_tuned", {"shard_mib": 1, "chunk_mib": 1, "direct": False}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chunk_shape = tensorstore_tuned.chunk_shape
        monkeypatch.setattr(
            tensorstore_tuned, "chunk_shape", lambda shape, itemsize, _: chunk_shape(shape, itemsize, 400)
        )
        monkeypatch.setattr(tensorstore_tuned, "MIB", 1000)


class TestTensorstoreT5xReal(Contract):
    """TensorStore as T5X really uses it."""

    name = "tensorstore_t5x_real"


class TestTensorstoreT5xRealManyChunks(Contract):
    """The same in the state's own dtypes, with chunks so small that the tests' tensors have many of them."""

    name, options = "tensorstore_t5x_real", {"dtype": "native"}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorstore_t5x_real, "_TARGET_CHUNK_BYTES", 4000)


class TestTensorstoreOcdbt(Contract):
    """TensorStore's database."""

    name = "tensorstore_ocdbt"
    exact_file_count = False


class TestTensorstoreOcdbtManyFiles(Contract):
    """The same with files so small that the tests' tensors need many of them."""

    name, options = "tensorstore_ocdbt", {"target_file_mib": 1}
    exact_file_count = False

    @pytest.fixture(autouse=True)
    def _small_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorstore_ocdbt, "MIB", 4000)


@pytest.mark.every_filesystem
class TestHdf5(Contract):
    """HDF5 with contiguous datasets."""

    name = "hdf5"


class TestHdf5Chunked(Contract):
    """The same in chunks, so small that the tests' tensors have many of them."""

    name, options = "hdf5", {"layout": "chunked", "chunk_mib": 1}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hdf5, "MIB", 4000)


@ORBAX_LEAVES_EARLY
class TestOrbax(Contract):
    """Orbax with its defaults."""

    name = "orbax"
    exact_file_count = False
    unneeded = r"tree/(_CHECKPOINT_METADATA|_METADATA|commit_success\.txt|ocdbt\.process_0/.*)"


@ORBAX_LEAVES_EARLY
class TestOrbaxPlain(Contract):
    """Orbax with a directory per array, and without a compressor."""

    name, options = "orbax", {"ocdbt": False, "compression": False}
    exact_file_count = False
    unneeded = r"tree/(_CHECKPOINT_METADATA|_METADATA|commit_success\.txt)"


class TestZarrPython(Contract):
    """zarr-python with its defaults."""

    name = "zarr_python"


class TestZarrPythonUncompressed(Contract):
    """The same without a compressor, in chunks so small that the tests' tensors have many of them."""

    name, options = "zarr_python", {"compression": "none"}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zarr_python, "MIB", 60)


class TestFastsafetensors(Contract):
    """safetensors in one file, read by fastsafetensors."""

    name = "fastsafetensors"


class TestTorchCheckpointing(Contract):
    """Meta's torch_checkpointing."""

    name = "torch_checkpointing"


class TestTorchCheckpointingUnmapped(Contract):
    """The same without its mapping on load."""

    name, options = "torch_checkpointing", {"mmap": False}


def test_every_strategy_has_a_contract() -> None:
    """No strategy, and no value of an option that is a choice, goes untested."""
    covered = [(contract.name, contract.options) for contract in Contract.__subclasses__()]
    for name in names():
        tested = [options for strategy, options in covered if strategy == name]
        assert tested, f"add a subclass of Contract for {name}"
        cls = strategy_class(name)
        kinds = get_type_hints(cls)
        for field in fields(cls):
            values = {options.get(field.name, field.default) for options in tested}
            assert choices(kinds[field.name]) <= values, f"add subclasses of Contract for {name} with {field.name}"
