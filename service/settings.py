"""The only reader of the environment. Every problem is reported at once, by name, when a process starts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from service.model import Limit


class VendorNeeds(Protocol):
    """What the settings have to know about a vendor."""

    @property
    def SLUG(self) -> str: ...
    @property
    def BASE_URL(self) -> str: ...
    @property
    def CREDENTIALS(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def LIMITS(self) -> Mapping[str, Limit]: ...


class SettingsError(Exception):
    """The environment lacks something or holds something unusable; `problems` names each setting and the fix."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("the settings are not usable:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = problems


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """How one vendor is reached."""

    vendor: str
    base_url: str
    credentials: dict[str, str]  #: by the name of the setting; empty where no set is complete
    wanted: str  #: which settings would make it complete, for people
    limits: dict[str, Limit]  #: how often it may be called, by kind of call: `read`, perhaps `submit` and `upload`

    @property
    def complete(self) -> bool:
        """Whether the vendor can be asked at all. Callbacks are received either way."""
        return bool(self.credentials)


#: What a key of the API may be for; `admin` may do everything.
MAX_OBJECT: Final = 5000 * 2**20  #: bytes that S3, Google and Azure all take in one request
#: What obstore would read, and a signed upload cannot say.
_BUCKETS_OWN: Final = ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_CUSTOMER_KEY_BASE64")
SCOPES: Final = frozenset({"submit", "read", "admin"})
MIN_API_KEY: Final = 20  #: characters
MIN_UNNAMED: Final = 32  #: the same, of a key without a name
HASHED: Final = "sha256$"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the API, of which only the hash is kept."""

    digest: str  #: SHA-256, in hex
    scopes: frozenset[str] = SCOPES
    short: bool = False  #: fewer than `MIN_API_KEY` characters, as far as that is known

    @classmethod
    def of(cls, key: str, scopes: frozenset[str] = SCOPES) -> ApiKey:
        """From the key itself, or from its hash as `sha256$…`."""
        if key.startswith(HASHED):
            return cls(digest=key.removeprefix(HASHED).lower(), scopes=scopes)
        return cls(digest=hashlib.sha256(key.encode()).hexdigest(), scopes=scopes, short=len(key) < MIN_API_KEY)


def key_entry(word: str) -> tuple[str, str, frozenset[str]]:
    """Name, key and scopes of one entry of `API_KEYS`: `name:key[:scopes]`. Keys may have colons in them.

    A long word without any is a key as platforms generate it, and its name is `default`.
    """
    if ":" not in word and len(word) >= MIN_UNNAMED:
        return "default", word, SCOPES
    name, _, rest = (part.strip() for part in word.partition(":"))
    key, _, told = rest.rpartition(":")
    scopes = frozenset(told.split("+"))
    return (name, key, scopes) if key and scopes <= SCOPES else (name, rest, SCOPES)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment says about itself. Times in seconds, sizes in bytes."""

    redis_url: str  #: `redis://`, `rediss://` or `unix://`: Redis 7 or newer, or Valkey
    storage_url: str  #: `s3://bucket/prefix`, `gs://…`, `az://…`, or `file:///folder` on a disk that all share
    public_url: str  #: the `https://` address under which vendors reach `web`
    secret_keys: tuple[str, ...]  #: comma-separated, 32 characters or more; the first signs callback URLs, all verify
    api_keys: dict[str, ApiKey]  #: `name:key[:scopes]`, comma-separated; `callsheet keys new NAME` makes one
    accounts: dict[str, Account]  #: vendor slug → account
    redis_max_connections: int = 64  #: of one process to Redis, 8 at least; small plans allow 20 to 40 in all
    redis_tls_verify: bool = True  #: 0 for platforms with self-signed certificates
    key_prefix: str = "callsheet"  #: of every key and channel in Redis
    allow_private_networks: bool = False  #: vendors, links and endpoints in this network and over http: sandbox only
    job_deadline: int = 86_400  #: how long a job may go without a verdict before it is `expired`
    job_retention_days: int = 30  #: how long a job that has ended is kept
    raw_retention_days: int = 7  #: how long what vendors sent is kept, in timelines and in quarantine
    poll_grace: float | None = None  #: how long to wait for a webhook before the first look; None: the vendor's own
    max_callback_bytes: int = 16 * 2**20  #: a legal apimodels callback echoes base64 audio: 8 MB and more
    max_output_bytes: int = MAX_OBJECT  #: of one result; what is larger is not stored
    worker_concurrency: int = 32  #: tasks in flight in one worker process
    tracing: bool = False  #: whether there is a collector for traces; OpenTelemetry itself reads where
    sentry_dsn: str = ""  #: where errors are reported to
    log_format: str = "auto"  #: `json`, `console`, or `auto`: console on a terminal, else json

    def queue(self, task: str) -> str:
        """The RQ queue of a task."""
        return f"{self.key_prefix}-{task}"

    def secrets(self) -> list[str]:
        """What nobody else is to read. API keys are not known here."""
        held = [value for account in self.accounts.values() for value in account.credentials.values()]
        return [*self.secret_keys, *held, urlsplit(self.redis_url).password or ""]


def load(vendors: Iterable[VendorNeeds], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environ` (the process's own by default).

    Raises:
        SettingsError: with every problem there is.
    """
    reader = _Reader(os.environ if environ is None else environ)
    settings: dict[str, object] = {
        "redis_url": reader.url("REDIS_URL", ("redis", "rediss", "unix")),
        "storage_url": reader.url("STORAGE_URL", ("file", "s3", "gs", "az")),
        "public_url": reader.url("PUBLIC_URL", ("http", "https")).rstrip("/"),
        "secret_keys": tuple(reader.words("SECRET_KEYS", "a comma-separated list; 32 random characters or more each")),
        "api_keys": reader.api_keys(),
        "accounts": {vendor.SLUG: reader.account(vendor) for vendor in vendors},
        "redis_max_connections": reader.amount("REDIS_MAX_CONNECTIONS", int, 64, least=8),
        "redis_tls_verify": reader.flag("REDIS_TLS_VERIFY", default=True),
        "key_prefix": reader.prefix(),
        "allow_private_networks": reader.flag("ALLOW_PRIVATE_NETWORKS", default=False),
        "job_deadline": reader.amount("JOB_DEADLINE_SECONDS", int, 86_400, least=1),
        "job_retention_days": reader.amount("JOB_RETENTION_DAYS", int, 30, least=2),  # no deadline may outlast it
        "raw_retention_days": reader.amount("RAW_RETENTION_DAYS", int, 7, least=1),
        "poll_grace": reader.amount("POLL_GRACE_SECONDS", float, None),
        "max_callback_bytes": reader.amount("MAX_CALLBACK_BYTES", int, 16 * 2**20, least=1),
        "max_output_bytes": reader.amount("MAX_OUTPUT_BYTES", int, MAX_OBJECT, least=1, most=MAX_OBJECT),
        "worker_concurrency": reader.amount("WORKER_CONCURRENCY", int, 32, least=1),
        "tracing": bool(reader.word("OTEL_EXPORTER_OTLP_ENDPOINT")),
        "sentry_dsn": reader.word("SENTRY_DSN"),
        "log_format": reader.choice("LOG_FORMAT", ("auto", "json", "console")),
    }
    deadline, retention = settings["job_deadline"], settings["job_retention_days"]
    if isinstance(deadline, int) and isinstance(retention, int) and deadline > retention * 86_400:
        reader.problems.append(
            "JOB_RETENTION_DAYS is shorter than JOB_DEADLINE_SECONDS: jobs would be forgotten unheard"
        )
    reader.problems += [
        f"{name} goes with no upload: set it to nothing, and have the bucket do so by default"
        for name in _BUCKETS_OWN
        if reader.word(name) and str(settings["storage_url"]).startswith("s3:")
    ]
    if reader.problems:
        raise SettingsError(reader.problems)
    return Settings(**settings)  # type: ignore[arg-type]  # each value was made by the reader of its type


class _Reader:
    """Reads one value at a time and collects what is wrong instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def word(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def _required(self, name: str, what: str) -> str:
        value = self.word(name)
        if not value:
            self.problems.append(f"{name} is missing: set it to {what}")
        return value

    def url(self, name: str, schemes: tuple[str, ...]) -> str:
        what = "a URL that starts with " + ", ".join(f"{scheme}://" for scheme in schemes)
        value = self._required(name, what)
        try:
            parts = urlsplit(value)
            named = parts.hostname or (parts.path and parts.scheme in ("file", "unix", "redis", "rediss"))
            usable = parts.scheme in schemes and bool(named) and parts.port != 0
        except ValueError:
            usable = False
        if value and not usable:  # the value stays out of the message: it may hold a password
            self.problems.append(f"{name} is not usable: set it to {what}")
        return value

    def words(self, name: str, what: str) -> list[str]:
        value = self._required(name, what)
        found = [word for part in value.split(",") if (word := part.strip())]
        if value and not found:
            self.problems.append(f"{name} is empty: set it to {what}")
        return found

    def api_keys(self) -> dict[str, ApiKey]:
        keys: dict[str, ApiKey] = {}
        for number, word in enumerate(self.words("API_KEYS", "a comma-separated list of name:key[:scopes]"), 1):
            name, key, scopes = key_entry(word)
            if not name or not key:
                self.problems.append(f"API_KEYS: entry {number} is not of the form name:key[:scopes]")
            elif name in keys:
                self.problems.append(f"API_KEYS: the name {name!r} is there twice; give each key its own name")
            elif key.startswith(HASHED) and not re.fullmatch(r"[0-9A-Fa-f]{64}", key.removeprefix(HASHED)):
                self.problems.append(f"API_KEYS: the hash of {name!r} is not sha256$ and 64 hexadecimal digits")
            keys[name] = ApiKey.of(key, scopes)
        return keys

    def prefix(self) -> str:
        value = self.word("KEY_PREFIX") or "callsheet"
        if not all(c.isalnum() or c in "-_." for c in value) or not value.isascii():
            self.problems.append("KEY_PREFIX may hold letters, digits, '-', '_' and '.' only")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.word(name).lower()
        if value not in ("", "0", "1", "true", "false"):
            self.problems.append(f"{name} is {value!r}: set it to 1 or 0")
        return default if not value else value in ("1", "true")

    def amount(
        self, name: str, type_: Callable[[str], float], default: float | None, least: int = 0, most: int = 0
    ) -> float | None:
        value = self.word(name)
        if not value:
            return default
        try:
            found = type_(value)
        except ValueError:
            found = None
        if found is None or not least <= found <= (most or 2**53 - 1):
            wanted = f"from {least} to {most}" if most else f"{least} or more"
            self.problems.append(f"{name} is {value[:20]!r}: set it to a number, {wanted}")
            return default
        return found

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.word(name) or choices[0]
        if value not in choices:
            self.problems.append(f"{name} is {value[:20]!r}: set it to one of {', '.join(choices)}")
        return value

    def account(self, vendor: VendorNeeds) -> Account:
        """A vendor's account. A set of credentials that is begun and not complete is a problem; none at all is not."""
        name = f"{vendor.SLUG.upper()}_BASE_URL"
        base_url = self.url(name, ("http", "https")) if self.word(name) else vendor.BASE_URL
        wanted = " or ".join(" + ".join(names) for names in vendor.CREDENTIALS)
        credentials: dict[str, str] = {}
        for names in vendor.CREDENTIALS:
            values = {name: self.word(name) for name in names}
            if all(values.values()):
                credentials = values
                break
            if any(values.values()):
                missing = ", ".join(name for name, value in values.items() if not value)
                self.problems.append(f"{missing} is missing: {vendor.SLUG} needs {wanted}")
        return Account(
            vendor=vendor.SLUG,
            base_url=base_url.rstrip("/"),
            credentials=credentials,
            wanted=wanted,
            limits=self.limits(vendor),
        )

    def limits(self, vendor: VendorNeeds) -> dict[str, Limit]:
        """The vendor's own, each unless a setting says otherwise; submissions may be limited everywhere."""
        found = dict(vendor.LIMITS)
        for kind in dict.fromkeys(("read", "submit", *vendor.LIMITS)):
            name = f"{vendor.SLUG.upper()}_{kind.upper()}_LIMIT"
            value = self.word(name)
            limit = _limit(value)
            if limit is not None:
                found[kind] = limit
            elif value:
                self.problems.append(f"{name} is {value[:20]!r}: set it to requests/seconds, as in 10/60")
        return found


def _limit(value: str) -> Limit | None:
    requests, _, seconds = value.partition("/")
    try:
        limit = Limit(requests=int(requests), seconds=float(seconds))
    except ValueError:
        return None
    return limit if 1 <= limit.requests < 2**53 and 0 < limit.seconds <= 86_400 else None
