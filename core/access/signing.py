"""Sign published checkpoints with the operator's key, in the format of minisign (jedisct1.github.io/minisign).

The signature covers `manifest.json`, which has the SHA-256 of every other file of a checkpoint.
"""

from pydantic import SecretStr

SIGNATURE = "manifest.json.minisig"


def sign(key: SecretStr, manifest: bytes) -> bytes:
    """Return the content of the file `manifest.json.minisig`. The signature is deterministic (Ed25519, RFC 8032)."""
    from minisign import SecretKey

    secret = SecretKey.from_base64(key.get_secret_value())
    signature = secret.sign(
        manifest, untrusted_comment="signature of a seft checkpoint", trusted_comment="manifest.json"
    )
    return bytes(signature)
