"""What may be asked of a vendor: the canonical names of inputs, and the models that take them.

A canonical name means the same for every vendor, so a request moves to another vendor by changing one word. What only
one vendor has is a field of that model's `vendor_input`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from service.model import Cost, JobError

#: Anything but white space and control characters, in words that every reader of patterns has.
VISIBLE: Final = r"[^\x00-\x20\x7f-\xa0]"
_URL: Final = {"form": "a URL with http:// or https:// and a host, without white space"}
_ID: Final = {"form": "an id, without white space"}
#: What every vendor fetches by itself: http or https, a host, and no white space.
Url = Annotated[str, Meta(pattern=rf"^https?://(?![/?#]){VISIBLE}+(?![\s\S])", max_length=2048, extra=_URL)]
#: A vendor's own id of something: a file, a face, a session.
Id = Annotated[str, Meta(pattern=rf"^{VISIBLE}+(?![\s\S])", max_length=500, extra=_ID)]

#: Seconds. Vendors measure for themselves: what is told here only makes the estimate of the cost.
Seconds = Annotated[float, Meta(ge=0.001, le=86_400)]

VideoUrl = Annotated[Url, Meta(description="the video whose lips are synced")]
VideoSeconds = Annotated[Seconds, Meta(description="how long the video is; for the estimate of the cost")]
ImageUrl = Annotated[Url, Meta(description="the picture of who speaks")]
AudioUrl = Annotated[Url, Meta(description="the voice")]
AudioSeconds = Annotated[Seconds, Meta(description="how long the voice is; for the estimate of the cost")]
LeftAudioUrl = Annotated[Url, Meta(description="the voice of who is on the left")]
LeftSeconds = Annotated[Seconds, Meta(description="how long the left voice is; for the estimate of the cost")]
RightAudioUrl = Annotated[Url, Meta(description="the voice of who is on the right")]
RightSeconds = Annotated[Seconds, Meta(description="how long the right voice is; for the estimate of the cost")]
SpokenText = Annotated[str, Meta(min_length=1, max_length=10_000, description="what is said")]
Voice = Annotated[Id, Meta(description="the vendor's id of the voice that says the text")]
Resolution = Annotated[Literal["480p", "720p"], Meta(description="of the result")]
Prompt = Annotated[str, Meta(min_length=1, max_length=5_000, description="words about the style")]
Seed = Annotated[int, Meta(ge=-(2**53), le=2**53, description="the same seed gives the same result again")]
MaskImageUrl = Annotated[Url, Meta(description="lips are synced only where this mask is")]
ReferenceImageUrl = Annotated[Url, Meta(description="another picture of who speaks, to go by")]


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every model's `input` and `vendor_input`. An optional field's None means that it is not given."""


class NoInput(Input, frozen=True, kw_only=True):
    """The `vendor_input` of a model that has nothing of its own."""


InputT = TypeVar("InputT", bound=Input)
OwnT = TypeVar("OwnT", bound=Input)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken of a first job's result."""

    vendor_input: dict[str, object]  #: the fields that it fills
    words: str  #: one sentence for the timeline


class First(msgspec.Struct, Generic[OwnT], frozen=True, kw_only=True):
    """A job of the vendor's that has to be done before, where `field` is given: its result is what the order lacks."""

    model: str  #: the name of the vendor's model that it is
    field: str  #: the input field that makes it necessary
    choose: Callable[[OwnT, Mapping[str, object]], Choice | JobError]  #: from the order's own input and the result


class Model(msgspec.Struct, Generic[InputT, OwnT], frozen=True, kw_only=True):
    """One thing that a vendor makes. Fields in `one_of` and `needs` are named `input.…` or `vendor_input.…`."""

    name: str  #: the vendor's own where it has one
    input: type[InputT]  #: of canonical names alone
    vendor_input: type[OwnT]
    one_of: tuple[tuple[str, ...], ...] = ()  #: of each group exactly one field is given
    needs: Mapping[str, str] = {}  #: a field → the field without which it means nothing
    uploads: Mapping[str, str] = {}  #: an input field that is uploaded first → the vendor_input field of its file's id
    first: First[OwnT] | None = None
    price: str  #: for people
    limits: str  #: for people: what the vendor takes, and how much of it
    unit: str  #: of the price: `credits`, `beans`, `USD`
    estimate: Callable[[InputT, OwnT], Cost | None]  #: None where a duration that decides is not told
    makes_media: bool = True  #: whether a success has outputs to store


def given(input: Input, names: Mapping[str, str]) -> dict[str, object]:
    """What is given of the fields in `names`, under the vendor's names for them; whole numbers as whole numbers."""
    values = ((theirs, getattr(input, ours, None)) for ours, theirs in names.items())
    return {
        theirs: int(value) if isinstance(value, float) and value.is_integer() else value
        for theirs, value in values
        if value is not None
    }
