"""Settings for tests: complete, on loopback, and with a vendor behind every name that nobody answers for."""

from __future__ import annotations

import atexit
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import msgspec

from service.settings import HASHED, Account, ApiKey, Settings
from service.vendors import VENDORS

SECRET: Final = "a secret key that signs the callback URLs of tests"
API_KEY: Final = "a key that opens the API to tests"

#: The discard port, where nobody listens: a vendor that a test did not expect to be called refuses the connection.
NOBODY: Final = "http://127.0.0.1:9"

_folder: Final = TemporaryDirectory(prefix="callsheet-tests-")
atexit.register(_folder.cleanup)


def settings(redis_url: str, **overrides: Any) -> Settings:
    """The settings of a deployment with every vendor's credentials; its storage is an empty folder of its own."""
    usual = Settings(
        redis_url=redis_url,
        storage_url=(Path(_folder.name) / uuid4().hex).as_uri(),
        public_url="http://127.0.0.1",
        secret_keys=(SECRET,),
        api_keys={"tests": ApiKey.of(API_KEY)},
        accounts=accounts(),
        allow_private_networks=True,
        log_format="json",
    )
    return msgspec.structs.replace(usual, **overrides)


def accounts(base_url: str = NOBODY, *, without: tuple[str, ...] = ()) -> dict[str, Account]:
    """Every vendor's account at `{base_url}/{slug}`, as a sandbox plays it; those of `without` have no credentials."""
    return {
        slug: Account(
            vendor=slug,
            base_url=f"{base_url}/{slug}",
            credentials={} if slug in without else dict.fromkeys(vendor.CREDENTIALS[0], f"secret of {slug}"),
            wanted=" or ".join(" + ".join(names) for names in vendor.CREDENTIALS),
            limits=dict(vendor.LIMITS),
        )
        for slug, vendor in VENDORS.items()
    }


def environment(made: Settings) -> dict[str, str]:
    """The environment variables from which another process reads the same settings."""
    variables = {
        "REDIS_URL": made.redis_url,
        "STORAGE_URL": made.storage_url,
        "PUBLIC_URL": made.public_url,
        "SECRET_KEYS": ",".join(made.secret_keys),
        "API_KEYS": ",".join(f"{name}:{HASHED}{key.digest}" for name, key in made.api_keys.items()),
        "KEY_PREFIX": made.key_prefix,
        "ALLOW_PRIVATE_NETWORKS": str(int(made.allow_private_networks)),
        "JOB_DEADLINE_SECONDS": str(made.job_deadline),
        "JOB_RETENTION_DAYS": str(made.job_retention_days),
        "RAW_RETENTION_DAYS": str(made.raw_retention_days),
        "MAX_CALLBACK_BYTES": str(made.max_callback_bytes),
        "MAX_OUTPUT_BYTES": str(made.max_output_bytes),
        "WORKER_CONCURRENCY": str(made.worker_concurrency),
        "LOG_FORMAT": made.log_format,
    }
    if made.poll_grace is not None:
        variables["POLL_GRACE_SECONDS"] = str(made.poll_grace)
    for slug, account in made.accounts.items():
        variables |= {f"{slug.upper()}_BASE_URL": account.base_url, **account.credentials}
        for kind, limit in account.limits.items():
            variables[f"{slug.upper()}_{kind.upper()}_LIMIT"] = f"{limit.requests}/{limit.seconds}"
    return variables
