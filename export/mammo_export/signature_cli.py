"""`mammo-export keygen`, `sign` and `verify-signature`: who made a bundle, and that nobody changed it since."""

from __future__ import annotations

import json
from pathlib import Path

import click

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PASSPHRASE = "MAMMO_KEY_PASSPHRASE"
"""Environment variable with the passphrase of a private key, for machines without a person."""
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
VERBOSE = click.option("--verbose", "-v", is_flag=True, help="A traceback with an error.")


@click.command("keygen")
@click.option("--output", "-o", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder for private.pem and public.pem.")  # fmt: skip
@click.option("--passphrase", "locked", is_flag=True, help=f"Lock the private key; asked for, or from {PASSPHRASE}.")
@AS_JSON
@VERBOSE
def keygen_command(output: Path, locked: bool, as_json: bool, verbose: bool) -> None:
    """Make a pair of ed25519 keys: sign with private.pem, give public.pem to the sites.

    Tell the sites the fingerprint by another way than the bundle. Keys are never overwritten.
    """
    import os

    from mammo_export.signature import PRIVATE, PUBLIC, new_keys

    passphrase = ""
    if locked:
        passphrase = os.environ.get(PASSPHRASE) or click.prompt(
            "Passphrase of the new key", hide_input=True, confirmation_prompt=True, err=True
        )
    found = new_keys(output, passphrase)
    if as_json:
        told = {"private_key": str(output / PRIVATE), "public_key": str(output / PUBLIC), "public_key_sha256": found}
        click.echo(json.dumps(told, sort_keys=True))
    else:
        click.echo(f"wrote {output / PRIVATE} (keep it secret) and {output / PUBLIC}; fingerprint {found}", err=True)


@click.command("sign")
@click.argument("bundle", type=FOLDER)
@click.option("--key", required=True, type=FILE, help="Private key (PEM, ed25519, readable by nobody else).")
@click.option("--overwrite", is_flag=True, help="Replace a signature of another key or state.")
@AS_JSON
@VERBOSE
def sign_command(bundle: Path, key: Path, overwrite: bool, as_json: bool, verbose: bool) -> None:
    """Check every file of BUNDLE and sign it; writes bundle.sig. A passphrase is asked for, or MAMMO_KEY_PASSPHRASE."""
    import os

    from mammo_export.signature import SIGNATURE, is_locked, sign

    passphrase = ""
    if is_locked(key):
        passphrase = os.environ.get(PASSPHRASE) or click.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    found = sign(bundle, key, passphrase, overwrite)
    if as_json:
        click.echo(json.dumps({"signature": str(bundle / SIGNATURE), "public_key_sha256": found}, sort_keys=True))
    else:
        click.echo(f"wrote {bundle / SIGNATURE}; key {found}", err=True)


@click.command("verify-signature")
@click.argument("bundle", type=FOLDER)
@click.option("--public-key", required=True, type=FILE, help="The signer's public key (PEM).")
@AS_JSON
@VERBOSE
def verify_signature_command(bundle: Path, public_key: Path, as_json: bool, verbose: bool) -> None:
    """Check that BUNDLE was signed by the owner of a key and that no bit changed since; exit code 5 otherwise.

    Needs neither torch nor onnx nor a network.
    """
    from dataclasses import asdict

    from mammo_export.signature import verify_signature

    found = verify_signature(bundle, public_key)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), **asdict(found)}, sort_keys=True))
        return
    click.echo(f"{bundle}: signed by {found.public_key_sha256}; {len(found.files)} files are as they were", err=True)
    if found.unsigned:
        click.echo(f"not signed: {', '.join(found.unsigned)}", err=True)
