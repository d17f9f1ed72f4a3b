"""The contract that a vendor module keeps.

A vendor is one pure module: data about the vendor, builders of requests, and readers of what the vendor says. It does
no I/O, catches no exceptions, and never sees a setting or a secret other than the credentials it is handed. Tolerance
for odd values lives in reading.py, once for all vendors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from service.model import Limit, Observation, Status
from service.vendors.inputs import Input, Model

#: Codes of a vendor's refusal, the same for every vendor; the vendor's own words go in `message`.
RETRYABLE: Final = frozenset({"rate_limited", "vendor_error", "vendor_unreachable"})

#: On no vendor's page, yet there is one way to understand them.
CANCELLED_WORDS: Final = {"cancelled": Status.CANCELLED, "canceled": Status.CANCELLED}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to a vendor, without its host and its authentication."""

    method: str = "GET"
    path: str  #: from the root, the documented prefix included: `/api/v1/jobs/…`
    query: dict[str, str] = {}
    json: dict[str, object] | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The vendor answered, and the answer is no. `code` is one of ours, `message` the vendor's words.

    Codes: `invalid_input`, `unauthorized`, `insufficient_credit`, `forbidden`, `not_found`,
    `rate_limited`, `vendor_error`, `vendor_unreachable`.
    """

    code: str
    message: str

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later, unchanged."""
        return self.code in RETRYABLE


class ListPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a vendor's list call, newest first."""

    observations: tuple[Observation, ...]
    more: bool  #: whether the vendor has a further page


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor's temporary access token and when it dies (unix seconds)."""

    value: str
    expires_at: float


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    """When to ask a vendor about a job, in seconds.

    Where a webhook is expected, the first look comes `grace` seconds after the submission. Between looks passes a tenth
    of the job's age, at least `every` and at most `slowest`.
    """

    grace: float | None = None  #: None: the vendor has no webhook, and is asked in its own rhythm from the beginning
    every: float
    slowest: float = 300.0


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes of an upload go."""

    url: str  #: for a PUT, without our authentication
    headers: dict[str, str]
    file_id: str  #: the vendor's id of the file, once it is ready


class Vendor(Protocol):
    """What a vendor module offers. The module's name is the slug: URL segment and prefix of its settings."""

    @property
    def SLUG(self) -> str: ...

    @property
    def NAME(self) -> str:
        """The vendor's name as it writes it."""

    @property
    def DOCS(self) -> str:
        """The vendor's page that the module follows."""

    @property
    def BASE_URL(self) -> str:
        """Scheme and host, without the documented path prefix; `<SLUG>_BASE_URL` replaces it."""

    @property
    def CREDENTIALS(self) -> tuple[tuple[str, ...], ...]:
        """Sets of settings of which one complete set is enough, best first."""

    @property
    def RHYTHM(self) -> Rhythm: ...

    @property
    def LIMITS(self) -> Mapping[str, Limit]:
        """How often it may be called, by kind of call, over all processes.

        `read` is for status, list and file; `submit` and `upload` are there where the vendor says so.
        """

    @property
    def LIST_PAGE(self) -> int:
        """Rows on a page of the list call; 0 where the vendor has no list call."""

    @property
    def UPLOADS(self) -> Mapping[str, tuple[str, ...]]:
        """The input fields that it takes only as files of its own → their endings; the first where none is known."""

    @property
    def MODELS(self) -> tuple[Model[Any, Any], ...]:
        """What can be asked of the vendor; of two that take the same input, the first is meant."""

    def headers(self, credentials: Mapping[str, str]) -> dict[str, str]:
        """The authentication headers, from a set of `CREDENTIALS` (after a token request: the one that is a token)."""

    def resembles(self, input: Mapping[str, object], body: bytes) -> bool:
        """Whether the job in a status answer may be what somebody with this `input` has asked for."""

    def token_request(self, credentials: Mapping[str, str]) -> Request | None:
        """The request for a temporary token, where these credentials need one."""

    def read_token(self, body: bytes) -> Token | Refusal: ...

    def status_request(self, vendor_job_id: str) -> Request: ...

    def list_request(self, page: int) -> Request:
        """The list call for a page, from 0. Only where `LIST_PAGE` is not 0."""

    def upload_request(self, field: str, ending: str) -> Request:
        """The request for a place to upload the file of one of `UPLOADS` to; `ending` is one of those it takes."""

    def read_upload(self, http_status: int, body: bytes) -> Slot | Refusal: ...

    def file_request(self, file_id: str) -> Request:
        """The question whether an uploaded file can be used yet."""

    def read_file(self, http_status: int, body: bytes) -> bool | Refusal:
        """Whether it can; a refusal where it never will."""

    def submit_request(self, model: str, input: Input, vendor_input: Input, callback_url: str | None) -> Request:
        """The order of a job. `model` is the name of one of `MODELS`, the inputs are of its types, and prepared."""

    def read_submit(self, http_status: int, body: bytes) -> Observation | Refusal:
        """The answer to a submission: the vendor's job, queued or processing, or the vendor's no.

        An observation with a `problem` means that the request was sent and nobody can tell what became of it: an answer
        without a job's id, or an error that is not in the vendor's own words. Such a job may have been paid for.
        """

    def read_callback(self, body: bytes) -> Observation:
        """Never raises: what cannot be understood comes back with a `problem`."""

    def read_status(self, http_status: int, body: bytes) -> Observation | Refusal: ...

    def read_list(self, http_status: int, body: bytes) -> ListPage | Refusal: ...


# -- what most vendors do not have; a module takes these over under the contract's names ---------


def tells_nothing(input: Mapping[str, object], body: bytes) -> bool:
    """The vendor's answers do not say what a job was asked for."""
    return True


def no_token_request(credentials: Mapping[str, str]) -> Request | None:
    """The credentials are the authentication: no token has to be asked for."""
    return None


def no_token(body: bytes) -> Token | Refusal:
    return Refusal(code="vendor_error", message="this vendor has no temporary tokens")


def no_list_request(page: int) -> Request:
    raise LookupError("this vendor has no list call: its LIST_PAGE is 0")


def no_list(http_status: int, body: bytes) -> ListPage | Refusal:
    return Refusal(code="vendor_error", message="this vendor has no list call")


NO_UPLOADS: Final[Mapping[str, tuple[str, ...]]] = {}


def no_upload_request(field: str, ending: str) -> Request:
    raise LookupError("this vendor takes no uploads: its UPLOADS is empty")


def no_upload(http_status: int, body: bytes) -> Slot | Refusal:
    return Refusal(code="vendor_error", message="this vendor takes no uploads")


def no_file_request(file_id: str) -> Request:
    raise LookupError("this vendor takes no uploads: its UPLOADS is empty")


def no_file(http_status: int, body: bytes) -> bool | Refusal:
    return Refusal(code="vendor_error", message="this vendor takes no uploads")


#: All four calls of an upload.
no_uploads: Final = (no_upload_request, no_upload, no_file_request, no_file)
