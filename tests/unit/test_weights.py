"""Reading weights: safetensors and .pth files, damaged ones included."""

import errno
import pickle
import sys
from collections import OrderedDict
from concurrent import futures
from pathlib import Path

import psutil
import pytest
import torch
from lightx2v_pack.engine.checkpoints import weights as weights_module
from lightx2v_pack.engine.checkpoints.header import TensorInfo
from lightx2v_pack.engine.checkpoints.weights import open_weights
from lightx2v_pack.engine.errors import CheckpointError
from safetensors.torch import load_file, save_file
from support import checkpoints


def test_several_files_read_as_one_mapping() -> None:
    folder = checkpoints.repository() / "distill_fp8"
    files = sorted(folder.glob("*.safetensors"))
    weights = open_weights(files)
    expected = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert set(weights) == set(expected)
    assert len(weights) == len(expected)
    assert weights.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    for name, tensor in expected.items():
        assert weights.header[name].shape == tuple(tensor.shape)
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name].float(), tensor.float())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_text_encoder_files_hold_the_same_tensors(suffix: str) -> None:
    weights = open_weights([checkpoints.text_encoder("bf16", suffix)])
    assert weights.header["blocks.0.attn.q.weight"] == TensorInfo("BF16", (64, 64))
    for name, tensor in checkpoints.text_encoder_weights().items():
        assert torch.equal(weights[name], tensor.bfloat16())


def test_prefix_is_stripped_and_other_names_left_out() -> None:
    prefix = "model.diffusion_model."
    weights = open_weights([checkpoints.comfy_transformer(prefix)], prefix)
    assert "patch_embedding.weight" in weights
    assert weights["blocks.0.ffn.0.scale_weight"].shape == ()
    assert len(open_weights([checkpoints.comfy_transformer(prefix)], "elsewhere.")) == 0
    assert set(open_weights([checkpoints.text_encoder("bf16", ".pth")], "blocks.1.")) == {
        name.removeprefix("blocks.1.") for name in checkpoints.text_encoder_weights() if name.startswith("blocks.1.")
    }


@pytest.mark.parametrize("path", [checkpoints.vae, lambda: checkpoints.vae(".pth")])
def test_read_again_after_close(path) -> None:
    weights = open_weights([path()])
    before = weights["conv2.weight"].clone()
    weights.close()
    assert torch.equal(weights["conv2.weight"], before)


def test_unknown_name_is_a_key_error() -> None:
    for file in (checkpoints.vae(), checkpoints.vae(".pth")):
        with pytest.raises(KeyError):
            open_weights([file])["nothing"]


class NotATensor:
    """Something a pickle can hold and a state dict cannot."""


def write_old_pickle(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def write_truncated(path: Path) -> None:
    path.write_bytes(checkpoints.vae(".pth").read_bytes()[:-5000])


BAD_PTH = {
    "objects": (lambda path: torch.save({"model": NotATensor()}, path), "not a file of plain tensors.*Detail: "),
    "nested": (
        lambda path: torch.save({"weights": {"a": torch.ones(1)}}, path),
        "holds nested data; expected a flat",
    ),
    "two models": (
        lambda path: torch.save({"model": {"a": torch.ones(1)}, "module": {"a": torch.ones(1)}}, path),
        "holds nested data; expected a flat",
    ),
    "not a dict": (lambda path: torch.save([torch.ones(1)], path), "holds list; expected a flat dict"),
    "old pickle": (
        write_old_pickle,
        "^Download .* again, or use a .safetensors version of it: it cannot be read as a PyTorch file",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "cannot be read as a PyTorch file"),
    "truncated": (write_truncated, "cannot be read as a PyTorch file.*probably truncated"),
    "empty": (lambda path: path.touch(), "cannot be read as a PyTorch file"),
    "missing": (lambda path: None, "missing or not a file"),
}


@pytest.mark.parametrize("case", BAD_PTH)
def test_bad_pth(tmp_path: Path, case: str) -> None:
    write, message = BAD_PTH[case]
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(CheckpointError, match=message) as refusal:
        open_weights([path])
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_pickle_does_not_run_code(tmp_path: Path) -> None:
    class Writes:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Writes()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="a pickle may run code"):
        open_weights([tmp_path / "model.pth"])
    assert not (tmp_path / "ran").exists()


def test_ordered_state_dict_is_accepted(tmp_path: Path) -> None:
    torch.save(OrderedDict(weight=torch.arange(3)), tmp_path / "model.pth")
    assert open_weights([tmp_path / "model.pth"]).header == {"weight": TensorInfo("I64", (3,))}


@pytest.mark.parametrize("place", [("state_dict",), ("module",), ("model",), ("model", "state_dict")], ids="/".join)
def test_what_a_training_program_puts_its_model_under_is_taken_off(place, tmp_path: Path) -> None:
    saved: object = {"weight": torch.arange(3)}
    for name in reversed(place):
        saved = {name: saved, "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}}
    torch.save(saved, tmp_path / "model.pth")
    weights = open_weights([tmp_path / "model.pth"])
    assert weights.header == {"weight": TensorInfo("I64", (3,))}
    weights.close()
    assert weights["weight"].tolist() == [0, 1, 2]


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.vae().read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        open_weights([path])


def test_a_file_that_changes_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.vae().read_bytes())
    weights = open_weights([path])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: .*download it again"):
        weights["conv2.weight"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's address space")
@pytest.mark.parametrize(
    ("suffix", "room"),
    # safetensors maps a file once itself and once more with torch.
    [(".pth", 0.5), (".safetensors", 0.5), (".safetensors", 1.5)],
)
def test_a_file_that_there_is_no_memory_to_map_is_fine(tmp_path: Path, suffix: str, room: float) -> None:
    import resource

    path, num_bytes = tmp_path / f"model{suffix}", 64 * 2**20
    save = save_file if suffix == ".safetensors" else torch.save
    save({"a": torch.zeros(num_bytes, dtype=torch.uint8)}, path)
    open_weights([path])["a"]  # what the first use of a library maps
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + int(room * num_bytes), limits[1]))
    try:
        with pytest.raises(CheckpointError, match=SHORT_OF_MEMORY) as refusal:
            open_weights([path])["a"]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert str(path) in str(refusal.value) and "Cannot allocate memory" in str(refusal.value)
    assert open_weights([path])["a"].shape == (num_bytes,)


SHORT_OF_MEMORY = "could not be mapped: RAM or the page file is short.*The file is fine.*enlarge the page file"
# What Windows and torch's allocator say; the sentence before the number is in the user's language.
REFUSALS = (
    OSError("Die Auslagerungsdatei ist zu klein. (os error 1455)"),
    OSError("[WinError 1455] The paging file is too small for this operation to complete"),
    OSError(errno.ENOMEM, "Nicht genug Hauptspeicher"),
    RuntimeError("Couldn't open file mapping: <x.pth>, error code: <1455>"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried"),
    MemoryError(),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=repr)
def test_what_systems_say_when_memory_is_short(monkeypatch, refusal: Exception) -> None:
    def refuse(*_, **__):
        raise refusal

    monkeypatch.setattr(weights_module, "safe_open", refuse)
    said = str(refusal) or "MemoryError"
    with pytest.raises(CheckpointError, match=SHORT_OF_MEMORY) as found:
        open_weights([checkpoints.vae()])["conv2.weight"]
    assert said in str(found.value) and "download" not in str(found.value)
    if isinstance(refusal, OSError):
        return
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=SHORT_OF_MEMORY):
        open_weights([checkpoints.vae(".pth")])


def test_location_is_where_the_bytes_lie(tmp_path: Path) -> None:
    path = checkpoints.comfy_transformer("model.diffusion_model.")
    weights = open_weights([path], "model.diffusion_model.")
    name = "blocks.0.ffn.0.weight"
    place = weights.location(name, torch.float8_e4m3fn)
    assert place is not None and place.path == path
    stored = path.read_bytes()[place.offset : place.offset + place.num_bytes]
    assert stored == weights[name].view(torch.uint8).numpy().tobytes()
    assert weights.location(name, torch.bfloat16) is None
    pth = open_weights([checkpoints.vae(".pth")])
    assert all(pth.location(name, tensor.dtype) is None for name, tensor in pth.items())


@pytest.mark.parametrize("path", [checkpoints.vae, lambda: checkpoints.vae(".pth")])
def test_threads_read_side_by_side_while_others_close(path) -> None:
    weights = open_weights([path()])
    expected = {name: tensor.clone() for name, tensor in weights.items()}

    def read(name: str) -> bool:
        tensor = weights[name]
        weights.close()
        return torch.equal(tensor, expected[name])

    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, list(expected)[:8] * 4))
