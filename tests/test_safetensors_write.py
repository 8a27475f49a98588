"""The streaming shard writer, read back by the safetensors library."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from mimo_ultraspeed.safetensors_write import ShardWriter, bf16_from_f32, f32_from_bf16


def test_one_shard_has_no_index(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    with ShardWriter(tmp_path / "new") as writer:
        writer.reserve("x", "F32", x.shape)
        writer.reserve("empty", "U8", (0, 4))
        writer.write("x", x)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    assert np.array_equal(load_file(tmp_path / "new" / "model.safetensors")["x"], x)


def test_shards_in_any_order_and_in_pieces(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.integers(0, 256, (i + 1, 10), dtype=np.uint8) for i in range(8)}
    with ShardWriter(tmp_path, max_shard_bytes=100, index_metadata={"tp_size": 4}) as writer:
        for name, array in arrays.items():
            writer.reserve(name, "U8", array.shape)
        for name, array in reversed(arrays.items()):
            writer.write(name, (array[i : i + 2] for i in range(0, len(array), 2)))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"tp_size": 4, "total_size": sum(array.size for array in arrays.values())}
    assert len(set(index["weight_map"].values())) == len(writer.files) > 1
    for name, array in arrays.items():
        assert np.array_equal(load_file(tmp_path / index["weight_map"][name])[name], array)


def test_holes_are_zero_and_cost_no_disk(tmp_path):
    with ShardWriter(tmp_path, holes=True) as writer:
        writer.reserve("large", "BF16", (1 << 14, 1 << 14))
        writer.reserve("x", "F32", (2,))
        writer.write("x", np.ones(2, np.float32))
    status = (tmp_path / "model.safetensors").stat()
    assert status.st_size > 1 << 29
    assert status.st_blocks * 512 < 1 << 20


def test_bf16_rounds_to_nearest_even():
    values = np.array([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 1.0 + 2**-8 + 2**-20, -0.0, 3.4e38, np.inf, np.nan], np.float32)
    back = f32_from_bf16(bf16_from_f32(values))
    assert back[:4].tolist() == [1.0, 1.0, 1.0 + 2**-6, 1.0 + 2**-7]
    assert math.copysign(1, back[4]) == -1
    assert back[5:7].tolist() == [np.inf, np.inf]
    assert np.isnan(back[7])


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((2, 2), np.float32), ValueError, r"x: expected shape \(3, 2\), found \(2, 2\)"),
        (np.zeros((3, 2), np.float64), TypeError, "x: expected float32 elements for F32, found float64"),
        ([np.zeros(5, np.float32)], ValueError, "x: expected 24 bytes in all, found 20"),
        ([np.zeros(7, np.float32)], ValueError, "x: expected 24 bytes in all, found more"),
    ],
)
def test_wrong_data_leaves_no_file(tmp_path, array, error, message):
    with pytest.raises(error, match=message), ShardWriter(tmp_path) as writer:
        writer.reserve("x", "F32", (3, 2))
        writer.write("x", array)
    assert not list(tmp_path.iterdir())


def test_misuse(tmp_path):
    with pytest.raises(ValueError, match="1 reserved tensors were never written, the first is x"), ShardWriter(tmp_path) as writer:
        writer.reserve("x", "F32", (1,))
        with pytest.raises(ValueError, match="x: reserved twice"):
            writer.reserve("x", "F32", (1,))
        with pytest.raises(ValueError, match="dtype must be one of"):
            writer.reserve("y", "F64", (1,))
        with pytest.raises(KeyError, match="z: not reserved"):
            writer.write("z", np.zeros(1, np.float32))
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(FileExistsError), ShardWriter(tmp_path) as writer:
        writer.reserve("x", "F32", (1,))
        writer.write("x", np.zeros(1, np.float32))
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
