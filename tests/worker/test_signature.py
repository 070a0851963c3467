"""The signature of a published checkpoint."""

from dataclasses import replace
from hashlib import sha256

import minisign
import pytest
from pydantic import SecretStr

from tests.worker.conftest import Backend, supervisor


def test_a_signature_of_the_manifest_is_published_if_there_is_a_key(backend: Backend, job_id: str) -> None:
    keys = minisign.KeyPair.generate()
    signing_key = SecretStr(keys.secret_key.to_base64().decode())
    settings = backend.settings.model_copy(update={"signing_key": signing_key})
    supervisor(replace(backend, settings=settings), "succeed").run()
    *_, signature, manifest = files = backend.checkpoint(job_id).files
    assert [file["name"] for file in files] == ["model.safetensors", "manifest.json.minisig", "manifest.json"]
    prefix = f"jobs/{job_id}/1/result/"
    content, signed = (backend.storage.read(prefix + file["name"]) for file in (manifest, signature))
    assert sha256(signed).hexdigest() == signature["sha256"]
    keys.public_key.verify(content, minisign.Signature.from_bytes(signed))
    with pytest.raises(minisign.VerifyError):
        keys.public_key.verify(content + b" ", minisign.Signature.from_bytes(signed))
