"""Signatures of bundles: keys, one changed bit anywhere, and no need of torch or onnx."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from mammo_export import signature
from mammo_export.signature import SIGNATURE, new_keys, read_private, read_public, sign, verify_signature
from mammo_export.signature_cli import PASSPHRASE, keygen_command, sign_command, verify_signature_command
from mammo_runtime.errors import ExitCode, ModelRefused, UsageError
from tiny_precisions import passed, timed, write_precisions

pytest.importorskip("cryptography")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_precisions(tmp_path / "bundle", {"fp16": passed(timed(1.2))})


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    new_keys(tmp_path / "keys")
    return tmp_path / "keys"


def flipped(path: Path, bit: int) -> bytes:
    """Flip one bit of a file; returns what it held."""
    held = path.read_bytes()
    changed = bytearray(held)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return held


def run(command: click.Command, *arguments: str | Path) -> Any:
    return command.main([str(a) for a in arguments], standalone_mode=False)


def test_a_signed_bundle_is_vouched_for_file_by_file(bundle: Path, keys: Path) -> None:
    found = sign(bundle, keys / "private.pem")
    verified = verify_signature(bundle, keys / "public.pem")
    assert (bundle / SIGNATURE).stat().st_size == 64
    assert found == verified.public_key_sha256 == signature.fingerprint(read_public(keys / "public.pem"))
    assert set(verified.files) == {"model.fp32.onnx", "model.fp16.onnx"}
    assert verified.unsigned == ()


def test_signing_again_gives_the_same_bytes(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "private.pem")
    first = (bundle / SIGNATURE).read_bytes()
    sign(bundle, keys / "private.pem")
    assert (bundle / SIGNATURE).read_bytes() == first


def test_one_changed_bit_of_manifest_or_signature_is_refused(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "private.pem")
    for name in ("bundle.json", SIGNATURE):
        path = bundle / name
        bits = 8 * path.stat().st_size
        for bit in range(0, bits, 5 if name == SIGNATURE else 211):
            held = flipped(path, bit)
            with pytest.raises(ModelRefused, match="not good") as refused:
                verify_signature(bundle, keys / "public.pem")
            assert refused.value.exit_code == ExitCode.MODEL_REFUSED
            path.write_bytes(held)
    verify_signature(bundle, keys / "public.pem")


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.fp16.onnx"])
def test_one_changed_bit_of_a_model_is_refused(bundle: Path, keys: Path, name: str) -> None:
    sign(bundle, keys / "private.pem")
    for bit in (0, 8 * (bundle / name).stat().st_size - 1):
        held = flipped(bundle / name, bit)
        with pytest.raises(ModelRefused, match="changed since it was exported"):
            verify_signature(bundle, keys / "public.pem")
        (bundle / name).write_bytes(held)


def test_a_signature_is_longer_or_shorter_by_nothing(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "private.pem")
    whole = (bundle / SIGNATURE).read_bytes()
    for content in (whole + b"\n", whole[:-1], b""):
        (bundle / SIGNATURE).write_bytes(content)
        with pytest.raises(ModelRefused, match="not good"):
            verify_signature(bundle, keys / "public.pem")


def test_files_that_the_manifest_does_not_name_are_told(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "private.pem")
    (bundle / "engines").mkdir()
    (bundle / "engines" / "a.engine").write_bytes(b"plan")
    assert verify_signature(bundle, keys / "public.pem").unsigned == ("engines/a.engine",)


def test_a_lost_file_a_lost_signature_and_another_signer_are_refused(bundle: Path, keys: Path, tmp_path: Path) -> None:
    sign(bundle, keys / "private.pem")
    new_keys(tmp_path / "others")
    with pytest.raises(ModelRefused, match="another key"):
        verify_signature(bundle, tmp_path / "others" / "public.pem")
    (bundle / "model.fp16.onnx").unlink()
    with pytest.raises(ModelRefused):
        verify_signature(bundle, keys / "public.pem")
    (bundle / SIGNATURE).unlink()
    with pytest.raises(ModelRefused, match="not signed"):
        verify_signature(bundle, keys / "public.pem")


def test_a_changed_bundle_is_not_signed(bundle: Path, keys: Path) -> None:
    flipped(bundle / "model.fp32.onnx", 99)
    with pytest.raises(ModelRefused, match="changed"):
        sign(bundle, keys / "private.pem")
    assert not (bundle / SIGNATURE).exists()


def test_another_signature_is_replaced_only_on_request(bundle: Path, keys: Path, tmp_path: Path) -> None:
    sign(bundle, keys / "private.pem")
    new_keys(tmp_path / "others")
    with pytest.raises(UsageError, match="--overwrite"):
        sign(bundle, tmp_path / "others" / "private.pem")
    sign(bundle, tmp_path / "others" / "private.pem", overwrite=True)
    verify_signature(bundle, tmp_path / "others" / "public.pem")


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_private_key_is_for_its_owner_alone(keys: Path, bundle: Path) -> None:
    private = keys / "private.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    private.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        sign(bundle, private)


def test_keys_are_never_overwritten(keys: Path) -> None:
    held = (keys / "private.pem").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        new_keys(keys)
    assert (keys / "private.pem").read_bytes() == held


def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    new_keys(tmp_path, "geheim")
    private = tmp_path / "private.pem"
    assert signature.is_locked(private)
    assert read_private(private, "geheim")
    for wrong, message in (("", "locked"), ("falsch", "wrong passphrase")):
        with pytest.raises(UsageError, match=message):
            read_private(private, wrong)


def test_what_is_no_such_key_is_refused(keys: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import x25519

    other = x25519.X25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    files = {
        "noise.pem": b"nothing",
        "x.pem": other.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        "x.pub.pem": other.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    for name, message in (("noise.pem", "PEM"), ("x.pem", "no ed25519")):
        with pytest.raises(UsageError, match=message):
            read_private(tmp_path / name)
    for path, message in ((tmp_path / "noise.pem", "PEM"), (tmp_path / "x.pub.pem", "no ed25519"),
                          (keys / "private.pem", "private key")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            read_public(path)


def test_the_commands_sign_and_verify(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv(PASSPHRASE, "geheim")
    run(keygen_command, "-o", tmp_path / "k", "--passphrase", "--json")
    found = json.loads(capsys.readouterr().out)
    run(sign_command, bundle, "--key", found["private_key"], "--json")
    assert json.loads(capsys.readouterr().out)["public_key_sha256"] == found["public_key_sha256"]
    run(verify_signature_command, bundle, "--public-key", found["public_key"])
    assert found["public_key_sha256"] in capsys.readouterr().err
    flipped(bundle / "bundle.json", 5)
    with pytest.raises(ModelRefused):
        run(verify_signature_command, bundle, "--public-key", found["public_key"])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(UsageError, match=r"mammo-edge\[sign\]"):
        new_keys(tmp_path)


def test_signatures_need_neither_torch_nor_onnx_nor_our_trainer(bundle: Path, keys: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'mammo_train'): sys.modules[name] = None\n"
        "import socket; socket.socket = None\n"
        "from pathlib import Path\n"
        "from mammo_export.signature import sign, verify_signature\n"
        f"folder, keys = Path({str(bundle)!r}), Path({str(keys)!r})\n"
        "sign(folder, keys / 'private.pem')\n"
        "print(len(verify_signature(folder, keys / 'public.pem').files))"
    )
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "export"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.stdout.strip() == "2", done.stderr


def test_an_openssl_tool_can_check_it_too(bundle: Path, keys: Path) -> None:
    """The bare signature is over the bare bytes of bundle.json: checked here with the primitive itself."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    sign(bundle, keys / "private.pem")
    body = "".join((keys / "public.pem").read_text().splitlines()[1:-1])
    raw = base64.b64decode(body)[-32:]
    Ed25519PublicKey.from_public_bytes(raw).verify(
        (bundle / SIGNATURE).read_bytes(), (bundle / "bundle.json").read_bytes()
    )
