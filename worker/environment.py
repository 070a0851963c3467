"""Choose the environment variables of a training process, by name. Others, such as all SEFT_*, are not passed on.

While the process fetches a model, it also needs the settings of the hub's client, which include the operator's token.
`worker.child` removes these settings before it executes the training.
"""

import site
from collections.abc import Mapping
from pathlib import Path

from core.infra import sandbox

COMPUTING = (
    *("PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONUNBUFFERED"),
    *("PYTHONDONTWRITEBYTECODE", "TMPDIR", "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "ATEN_*", "TORCH_*"),
    *("PYTORCH_*", "CUDA_*", "CUBLAS_*", "CUDNN_*", "NVIDIA_*", "NCCL_*", "HIP_*", "HSA_*", "ROCR_*", "MIOPEN_*"),
)
"""Variables of a process that trains. A `*` at the end stands for any text."""
FETCHING = (
    *("HOME", "HF_*", "HUGGINGFACE_*", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("CURL_CA_BUNDLE", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("all_proxy", "http_proxy", "https_proxy", "no_proxy"),
)
"""Further variables of a process that fetches a model from the hub."""


def of_child(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the variables with which a training process or a calibration starts.

    Temporary files are written to `folder`, which is the folder of the job for a training process.
    """
    # Waiting threads that spin make training several times slower if other programs need the cores.
    # Temporary files are deleted with the folder of the job, also if the process is killed.
    return {"OMP_WAIT_POLICY": "passive", **_chosen(variables, (*COMPUTING, *FETCHING)), "TMPDIR": str(folder)}


def of_training(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the variables with which a training process continues when it has its model.

    Libraries find no token and no cache of the user, and write their own caches to the folder of the job.
    """
    path = [str(sandbox.ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    own = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "cache" / "hub")}
    fixed = {"PYTHONPATH": ":".join(path), "PYTHONUSERBASE": site.getuserbase(), "HF_HUB_OFFLINE": "1"}
    return {**_chosen(variables, COMPUTING), **own, **fixed}


def _chosen(variables: Mapping[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    prefixes = tuple(pattern.removesuffix("*") for pattern in patterns if pattern.endswith("*"))
    return {name: value for name, value in variables.items() if name in patterns or name.startswith(prefixes)}
