"""What somebody else made is data, never a program: nothing of it runs, and nothing lands outside ``--out``."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

Damage = Callable[[Path, Path], None]


class Trap:
    """Unpickling it makes a file: the proof that something was executed."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (os.system, (f"touch {self.proof}",))


def trap(proof: Path) -> bytes:
    return pickle.dumps(Trap(proof))


def torch_file(proof: Path) -> bytes:
    import io

    import torch

    content = io.BytesIO()
    torch.save({"model": Trap(proof)}, content)
    return content.getvalue()


def legacy_torch_file(proof: Path) -> bytes:
    import io

    import torch

    content = io.BytesIO()
    torch.save({"model": Trap(proof)}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def pickled_array(proof: Path) -> bytes:
    import io

    content = io.BytesIO()
    np.savez(content, image=np.array([Trap(proof)], dtype=object), logits=np.zeros(1))
    return content.getvalue()


def zip_of(names: dict[str, bytes]) -> bytes:
    import io

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return content.getvalue()


def zip_bomb(_: Path) -> bytes:
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (3000000000,), }"
    return zip_of({"image.npy": header.ljust(128, b" ") + bytes(200 * 2**20)})


def relisted(bundle: Path) -> None:
    """Make the description agree with the files: only the content itself is hostile then."""
    description = json.loads((bundle / "bundle.json").read_text())
    for name in description["files"]:
        description["files"][name] = sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(description))


def replaced(name: str, content: Callable[[Path], bytes]) -> Damage:
    def damage(bundle: Path, proof: Path) -> None:
        (bundle / name).write_bytes(content(proof))
        relisted(bundle)

    return damage


def described(**changes: object) -> Damage:
    """Values of the description changed; a dotted key leads further down."""

    def damage(bundle: Path, proof: Path) -> None:
        description = json.loads((bundle / "bundle.json").read_text())
        for path, value in changes.items():
            place = description
            *way, last = path.split("__")
            for key in way:
                place = place[key]
            place[last] = value
        (bundle / "bundle.json").write_text(json.dumps(description))

    return damage


def text_of_description(text: str) -> Damage:
    def damage(bundle: Path, proof: Path) -> None:
        (bundle / "bundle.json").write_text(text)

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Damage:
    def damage(bundle: Path, proof: Path) -> None:
        weights = load_file(bundle / "model.safetensors")
        change(weights)
        save_file(weights, bundle / "model.safetensors")
        relisted(bundle)

    return damage


def renamed_tensor(weights: dict[str, np.ndarray]) -> None:
    first = next(iter(weights))
    weights["../../" + first] = weights.pop(first)


def without_first(weights: dict[str, np.ndarray]) -> None:
    weights.pop(next(iter(weights)))


def another_shape(weights: dict[str, np.ndarray]) -> None:
    weights[next(iter(weights))] = np.zeros((7, 7), np.float32)


def one_more(weights: dict[str, np.ndarray]) -> None:
    weights["extra.weight"] = np.zeros(3, np.float32)


def beside(name: str) -> Damage:
    def damage(bundle: Path, proof: Path) -> None:
        (bundle / name).write_bytes(trap(proof))

    return damage


def linked(bundle: Path, proof: Path) -> None:
    (bundle / "model.safetensors").unlink()
    (bundle / "model.safetensors").symlink_to("/etc/hostname")


def linked_in_a_circle(bundle: Path, proof: Path) -> None:
    (bundle / "bundle.json").unlink()
    (bundle / "bundle.json").symlink_to("bundle.json")


def listed_outside(bundle: Path, proof: Path) -> None:
    outside = bundle.parent / "outside.safetensors"
    shutil.copy(bundle / "model.safetensors", outside)
    description = json.loads((bundle / "bundle.json").read_text())
    description["files"] = {"../outside.safetensors": sha256(outside.read_bytes()).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(description))


def cut(bundle: Path, proof: Path) -> None:
    content = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(content[: len(content) // 2])


def flipped(bundle: Path, proof: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(bytes(content))


def huge_header(_: Path) -> bytes:
    return (2**60).to_bytes(8, "little") + b"{}"


BUNDLES: dict[str, Damage] = {
    "weights are a pickle": replaced("model.safetensors", trap),
    "weights are a torch file": replaced("model.safetensors", torch_file),
    "weights are an old torch file": replaced("model.safetensors", legacy_torch_file),
    "weights are a zip that climbs": replaced("model.safetensors", lambda proof: zip_of({f"../../{proof.name}": b"x"})),
    "weights are empty": replaced("model.safetensors", lambda _: b""),
    "weights promise exabytes": replaced("model.safetensors", huge_header),
    "probe is a pickle": replaced("probe.npz", trap),
    "probe holds pickled objects": replaced("probe.npz", pickled_array),
    "probe is a zip that climbs": replaced("probe.npz", lambda proof: zip_of({f"../../../{proof.name}": b"x"})),
    "probe is a bomb": replaced("probe.npz", zip_bomb),
    "probe lacks its arrays": replaced("probe.npz", lambda _: zip_of({})),
    "a pickle beside": beside("model.pkl"),
    "a torch file beside": beside("model.pt"),
    "a module beside": beside("sitecustomize.py"),
    "wrong hash": flipped,
    "truncated weights": cut,
    "files outside": listed_outside,
    "a link to another file": linked,
    "a link to itself": linked_in_a_circle,
    "no schema version": described(schema_version=None),
    "schema version of tomorrow": described(schema_version=4),
    "schema version as text": described(schema_version="1"),
    "missing tensor": tensors(without_first),
    "extra tensor": tensors(one_more),
    "tensor of another shape": tensors(another_shape),
    "tensor with a climbing name": tensors(renamed_tensor),
    "a python target as network": described(network={"kind": "python", "target": "os:system"}),
    "a network of terabytes": described(network__features=[10**9, 10**9]),
    "a patch of terabytes": described(plan__patch_ijk=[10**5, 10**5, 10**5]),
    "a negative patch": described(plan__patch_ijk=[-8, 8, 8]),
    "a spacing of nothing": described(plan__spacing_ijk_mm=[0.0, 1.0, 1.0]),
    "an unknown key": described(plan__run="touch proof"),
    "labels that are no labels": described(labels={"structures": "os.system"}),
    "no files": described(files={}),
    "nested a hundred thousand deep": text_of_description("[" * 100_000),
    "not JSON": text_of_description("\x80\x04\x95"),
    "a list": text_of_description("[]"),
    "an empty description": text_of_description(""),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_hostile_bundle_is_refused(name: str, tmp_path: Path, run_folder: Path, sample: Path, medseg) -> None:
    proof, bundle = tmp_path / "proof", tmp_path / "models" / "bundle"
    shutil.copytree(run_folder / "bundle", bundle)
    BUNDLES[name](bundle, proof)
    answer = medseg("predict", bundle, sample / "images" / "pt_222.nii.gz", "--out", tmp_path / "out" / "deep")
    assert answer.exit_code == 4, answer.stderr
    assert answer.stderr.strip().startswith("error: ")
    assert len(answer.stderr) < 2000
    assert not proof.exists()
    assert not list(tmp_path.rglob("proof*"))


def test_the_bundle_itself_is_fine(tmp_path: Path, run_folder: Path, sample: Path, medseg) -> None:
    """Unpacked, listed and described anew without a change, it predicts: each refusal above is for its own reason."""
    bundle = tmp_path / "bundle"
    shutil.copytree(run_folder / "bundle", bundle)
    tensors(lambda weights: None)(bundle, tmp_path / "proof")
    answer = medseg("predict", bundle, sample / "images" / "pt_222.nii.gz", "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.stderr


IDS = ["../outside", "..", ".", "a/b", "/absolute", "nul\0byte", "x" * 300, "back\\slash", "\ud800", "new\nline", ""]
"""Ids of cases that lead elsewhere, or name no file."""

GOOD_IDS = ["病人一", "Ünï cöde", "x" * 190, "-rf", "a b;c&d", "$(touch proof)", "con"]


def dataset_with_id(folder: Path, identity: str, sample: Path) -> Path:
    document = {
        "labels": {"background": 0, "thing": 1},
        "cases": [{"id": identity, "image": str(sample / "images" / "pt_222.nii.gz")}],
    }
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("identity", IDS, ids=lambda text: repr(text)[:20])
def test_an_id_that_leads_elsewhere_is_refused(identity, tmp_path: Path, sample: Path, run_folder, medseg) -> None:
    dataset = dataset_with_id(tmp_path / "dataset", identity, sample)
    answer = medseg("predict", run_folder, dataset, "--out", tmp_path / "out" / "deep")
    assert answer.exit_code == 2, answer.stderr
    assert answer.stderr.startswith("error: ")
    assert {path.name for path in tmp_path.iterdir()} <= {"dataset", "out"}
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize("identity", GOOD_IDS, ids=lambda text: text[:20])
def test_an_odd_but_possible_id_names_its_output(identity, tmp_path: Path, sample: Path, run_folder, medseg) -> None:
    dataset = dataset_with_id(tmp_path / "dataset", identity, sample)
    answer = medseg("predict", run_folder, dataset, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.stderr
    assert (tmp_path / "out" / f"{identity}.nii.gz").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "out"}


def bad_yaml(text: str) -> Damage:
    def write(path: Path, proof: Path) -> None:
        path.write_text(text.replace("PROOF", str(proof)))

    return write


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIGS: dict[str, Damage] = {
    "python object": bad_yaml("dataset: !!python/object/apply:os.system ['touch PROOF']\n"),
    "python module": bad_yaml("dataset: !!python/module:os\n"),
    "billion laughs": bad_yaml(BOMB),
    "nested deep": bad_yaml("a: " + "[" * 20_000),
    "binary": lambda path, proof: path.write_bytes(trap(proof)) and None,
    "a foreign task": bad_yaml("task: ../../evil\n"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_refused(name: str, tmp_path: Path, sample: Path, medseg) -> None:
    CONFIGS[name](tmp_path / "config.yaml", tmp_path / "proof")
    answer = medseg("train", tmp_path / "config.yaml", "--data", sample, "--out", tmp_path / "run")
    assert answer.exit_code in (2, 3), answer.stderr
    assert answer.stderr.startswith("error: ")
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [trap, torch_file, lambda _: b"", huge_header], ids=["pickle", "torch", "empty", "huge"]
)
def test_a_hostile_checkpoint_is_refused(
    content, tmp_path: Path, run_folder: Path, sample: Path, smoke, medseg
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "checkpoints" / "last.safetensors").write_bytes(content(tmp_path / "proof"))
    answer = medseg("train", smoke, "--data", sample, "--out", run, "--resume", "--set", "trainer.num_threads=1")
    assert answer.exit_code == 4, answer.stderr
    assert not (tmp_path / "proof").exists()


def test_a_deep_dataset_description_and_a_pickle_as_scan(tmp_path: Path, run_folder: Path, medseg) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "dataset.json").write_text('{"cases":' + "[" * 100_000)
    answer = medseg("predict", run_folder, tmp_path / "dataset", "--out", tmp_path / "out")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("error: ")
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(trap(tmp_path / "proof"))
    answer = medseg("predict", run_folder, scan, "--out", tmp_path / "out")
    assert answer.exit_code == 6
    assert not (tmp_path / "proof").exists()


def test_a_link_as_output_is_replaced_not_followed(tmp_path: Path, run_folder: Path, sample: Path, medseg) -> None:
    """What stands outside ``--out`` stays as it is, though a link of an output's name leads there."""
    precious = tmp_path / "precious.nii.gz"
    precious.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pt_222.nii.gz").symlink_to(precious)
    scan = sample / "images" / "pt_222.nii.gz"
    answer = medseg("predict", run_folder, scan, "--out", tmp_path / "out", "--overwrite")
    assert answer.exit_code == 0, answer.stderr
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "pt_222.nii.gz").is_symlink()


def test_the_traps_work(tmp_path: Path) -> None:
    """The proof of this file: where somebody does unpickle, the file appears."""
    pickle.loads(trap(tmp_path / "proof"))
    assert (tmp_path / "proof").exists()
