"""The environment: every problem at once, each by its name, and never a secret in a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from service.model import Limit
from service.settings import ApiKey, Settings, SettingsError, load
from service.vendors import VENDORS

#: The least that a deployment has to say.
ENOUGH: Final = {
    "REDIS_URL": "redis://:redis-password@127.0.0.1:6379/0",
    "STORAGE_URL": "file:///srv/outputs",
    "PUBLIC_URL": "https://callsheet.example",
    "SECRET_KEYS": "first-secret-key-of-32-characters!,second-secret-key-of-32-characters",
    "API_KEYS": "studio:key-of-the-studio,shop:key-of-the-shop",
}


def read(**changes: str | None) -> Settings:
    """The settings in `ENOUGH` with some variables changed, or left out where None."""
    environ = {name: value for name, value in {**ENOUGH, **changes}.items() if value is not None}
    return load(VENDORS.values(), environ)


def problems(**changes: str | None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(**changes)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_what_is_not_said_has_a_default() -> None:
    made = read()
    assert made.redis_url == ENOUGH["REDIS_URL"]
    assert made.secret_keys == ("first-secret-key-of-32-characters!", "second-secret-key-of-32-characters")
    assert made.api_keys == {"studio": ApiKey.of("key-of-the-studio"), "shop": ApiKey.of("key-of-the-shop")}
    assert (made.redis_tls_verify, made.allow_private_networks, made.log_format) == (True, False, "auto")
    assert (made.key_prefix, made.queue("archive")) == ("callsheet", "callsheet-archive")
    assert read(KEY_PREFIX="studio").queue("archive") == "studio-archive"
    assert (made.job_deadline, made.poll_grace, made.worker_concurrency) == (86_400, None, 32)
    assert (made.max_callback_bytes, made.max_output_bytes) == (16 * 2**20, 5000 * 2**20)
    assert set(made.accounts) == set(VENDORS)
    for slug, account in made.accounts.items():
        assert account.base_url == VENDORS[slug].BASE_URL
        assert not account.complete


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("REDIS_URL", "rediss://redis.example:6380", "redis_url", "rediss://redis.example:6380"),
        ("REDIS_URL", "unix:///run/redis.sock", "redis_url", "unix:///run/redis.sock"),
        ("REDIS_TLS_VERIFY", "0", "redis_tls_verify", False),
        ("REDIS_TLS_VERIFY", "true", "redis_tls_verify", True),
        ("STORAGE_URL", "s3://bucket/prefix", "storage_url", "s3://bucket/prefix"),
        ("PUBLIC_URL", "https://callsheet.example/", "public_url", "https://callsheet.example"),
        ("PUBLIC_URL", "  http://127.0.0.1:8000  ", "public_url", "http://127.0.0.1:8000"),
        ("KEY_PREFIX", "studio-2_a.b", "key_prefix", "studio-2_a.b"),
        ("ALLOW_PRIVATE_NETWORKS", "1", "allow_private_networks", True),
        ("ALLOW_PRIVATE_NETWORKS", "False", "allow_private_networks", False),
        ("JOB_DEADLINE_SECONDS", "60", "job_deadline", 60),
        ("POLL_GRACE_SECONDS", "0.5", "poll_grace", 0.5),
        ("MAX_CALLBACK_BYTES", "1000", "max_callback_bytes", 1000),
        ("MAX_OUTPUT_BYTES", "1000", "max_output_bytes", 1000),
        ("WORKER_CONCURRENCY", "4", "worker_concurrency", 4),
        ("LOG_FORMAT", "console", "log_format", "console"),
        (
            "SECRET_KEYS",
            " a-secret-key-of-32-characters-1234 , ",
            "secret_keys",
            ("a-secret-key-of-32-characters-1234",),
        ),
        ("API_KEYS", " studio : a:key ", "api_keys", {"studio": ApiKey.of("a:key")}),
        ("API_KEYS", "a:a:key:read", "api_keys", {"a": ApiKey.of("a:key", frozenset({"read"}))}),
        ("API_KEYS", "a:k:read+submit", "api_keys", {"a": ApiKey.of("k", frozenset({"read", "submit"}))}),
        ("API_KEYS", "a:sha256$" + "AB" * 32, "api_keys", {"a": ApiKey(digest="ab" * 32)}),
        ("API_KEYS", "ab" * 32, "api_keys", {"default": ApiKey.of("ab" * 32)}),
        ("API_KEYS", "", "api_keys", None),
    ],
)
def test_what_is_said_is_read(name: str, value: str, field: str, expected: Any) -> None:
    if expected is None:
        assert problems(**{name: value})
    else:
        assert getattr(read(**{name: value}), field) == expected


@pytest.mark.parametrize("name", list(ENOUGH))
@pytest.mark.parametrize("value", [None, "", "   "])
def test_what_a_deployment_has_to_say_is_missed_by_name(name: str, value: str | None) -> None:
    [problem] = problems(**{name: value})
    assert problem.startswith(f"{name} is missing: set it to ")


def test_what_no_upload_to_s3_can_say_is_refused_there_and_nowhere_else() -> None:
    [problem] = problems(AWS_SERVER_SIDE_ENCRYPTION="aws:kms", STORAGE_URL="s3://bucket")
    assert problem.startswith("AWS_SERVER_SIDE_ENCRYPTION goes with no upload: set it to nothing")
    for elsewhere in ("gs://bucket", "file:///srv/outputs"):
        assert read(AWS_SERVER_SIDE_ENCRYPTION="aws:kms", STORAGE_URL=elsewhere).storage_url == elsewhere


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            VENDORS.values(),
            {"KEY_PREFIX": "a:b", "LOG_FORMAT": "xml", "CHANJING_APP_ID": "x", "POLL_GRACE_SECONDS": "?"},
        )
    named = [problem.split()[0] for problem in caught.value.problems]
    assert sorted(named) == sorted([*ENOUGH, "KEY_PREFIX", "LOG_FORMAT", "CHANJING_SECRET_KEY", "POLL_GRACE_SECONDS"])
    assert str(caught.value).count("\n  - ") == len(named)


UNUSABLE: Final = [
    ("REDIS_URL", "http://redis.example"),
    ("REDIS_URL", "redis://"),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "unix://"),
    ("REDIS_URL", "redis://[::1"),
    ("REDIS_URL", "redis://redis.example:port/0"),
    ("STORAGE_URL", "/srv/outputs"),
    ("STORAGE_URL", "file://"),
    ("STORAGE_URL", "s3://"),
    ("STORAGE_URL", "s3:///prefix"),
    ("STORAGE_URL", "ftp://bucket"),
    ("PUBLIC_URL", "callsheet.example"),
    ("PUBLIC_URL", "https://"),
    ("PUBLIC_URL", "https:///path"),
    ("SECRET_KEYS", ","),
    ("API_KEYS", ","),
    ("API_KEYS", "key-without-a-name"),
    ("API_KEYS", ":key"),
    ("API_KEYS", "studio:"),
    ("API_KEYS", "studio:one,studio:two"),
    ("KEY_PREFIX", "a:b"),
    ("KEY_PREFIX", "a b"),
    ("KEY_PREFIX", "ä"),
    ("KEY_PREFIX", "a{b}"),
    ("KEY_PREFIX", "a*"),
    ("REDIS_TLS_VERIFY", "maybe"),
    ("ALLOW_PRIVATE_NETWORKS", "2"),
    ("JOB_DEADLINE_SECONDS", "a day"),
    ("JOB_DEADLINE_SECONDS", "-1"),
    ("JOB_DEADLINE_SECONDS", "1.5"),
    ("JOB_DEADLINE_SECONDS", str(2**60)),
    ("MAX_OUTPUT_BYTES", str(5 * 2**30)),
    ("POLL_GRACE_SECONDS", "nan"),
    ("POLL_GRACE_SECONDS", "inf"),
    ("MAX_CALLBACK_BYTES", "16M"),
    ("MAX_OUTPUT_BYTES", ""),
    ("WORKER_CONCURRENCY", "many"),
    ("LOG_FORMAT", "xml"),
    ("KITTA_BASE_URL", "kitta.example"),
    ("KITTA_BASE_URL", "ftp://kitta.example"),
    *[("KITTA_READ_LIMIT", value) for value in ("10", "10/", "/60", "0/60", "-1/60", "1.5/60", "10/0", "10/-1")],
    *[("KITTA_SUBMIT_LIMIT", value) for value in ("ten/60", "10/60/60", "10/nan", "10/inf", "10/86401", "10 60")],
    ("CHANJING_UPLOAD_LIMIT", f"{2**53}/60"),
]


@pytest.mark.parametrize(("name", "value"), [case for case in UNUSABLE if case[1]])
def test_what_cannot_be_used_is_refused_by_name_with_what_would_be_right(name: str, value: str) -> None:
    [problem] = problems(**{name: value})
    assert problem.startswith(name)
    assert any(word in problem for word in ("set it to", "may hold", "of the form", "its own name", "needs"))


def test_a_worker_that_could_never_take_a_task_is_refused() -> None:
    [problem] = problems(WORKER_CONCURRENCY="0")
    assert problem.startswith("WORKER_CONCURRENCY")


# -- credentials -----------------------------------------------------------------------------------------

#: Every set of credentials that is enough, by vendor.
SETS: Final = [(slug, names) for slug, vendor in sorted(VENDORS.items()) for names in vendor.CREDENTIALS]


@pytest.mark.parametrize(("slug", "names"), SETS)
def test_one_complete_set_of_credentials_is_enough(slug: str, names: tuple[str, ...]) -> None:
    made = read(**dict.fromkeys(names, "a secret"))
    assert made.accounts[slug].complete
    assert made.accounts[slug].credentials == dict.fromkeys(names, "a secret")
    assert [account.vendor for account in made.accounts.values() if account.complete] == [slug]


@pytest.mark.parametrize(("slug", "names"), [case for case in SETS if len(case[1]) > 1])
def test_a_set_that_is_begun_and_not_complete_is_a_problem(slug: str, names: tuple[str, ...]) -> None:
    for given in names:
        [problem] = problems(**{given: "a secret"})
        missing = [name for name in names if name != given]
        assert problem.startswith(f"{', '.join(missing)} is missing: {slug} needs ")
        assert all(name in problem for name in names)


def test_of_two_sets_the_better_one_is_used() -> None:
    made = read(CHANJING_ACCESS_TOKEN="fixed", CHANJING_APP_ID="app", CHANJING_SECRET_KEY="key")
    assert made.accounts["chanjing"].credentials == {"CHANJING_ACCESS_TOKEN": "fixed"}


def test_blank_credentials_are_none() -> None:
    made = read(KITTA_API_TOKEN="  ", CHANJING_APP_ID="", CHANJING_SECRET_KEY=" ")
    assert not any(account.complete for account in made.accounts.values())


@pytest.mark.parametrize("slug", sorted(VENDORS))
def test_an_account_says_what_would_make_it_complete(slug: str) -> None:
    wanted = read().accounts[slug].wanted
    assert all(name in wanted for names in VENDORS[slug].CREDENTIALS for name in names)


@pytest.mark.parametrize("slug", sorted(VENDORS))
def test_a_vendor_is_reached_where_its_base_url_says(slug: str) -> None:
    made = read(**{f"{slug.upper()}_BASE_URL": "http://127.0.0.1:9000/sandbox/"})
    assert made.accounts[slug].base_url == "http://127.0.0.1:9000/sandbox"


# -- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", sorted(VENDORS))
def test_a_vendor_is_called_as_often_as_it_says_or_as_a_setting_says(slug: str) -> None:
    own = VENDORS[slug].LIMITS
    assert read().accounts[slug].limits == own
    for kind in {"read", "submit", *own}:
        made = read(**{f"{slug.upper()}_{kind.upper()}_LIMIT": " 7 / 2.5 "})
        assert made.accounts[slug].limits == {**own, kind: Limit(requests=7, seconds=2.5)}
        assert all(made.accounts[other].limits == VENDORS[other].LIMITS for other in VENDORS if other != slug)


def test_uploads_are_limited_only_where_the_vendor_has_them() -> None:
    made = read(KITTA_UPLOAD_LIMIT="1/86400", CHANJING_UPLOAD_LIMIT="1/86400")
    assert "upload" not in made.accounts["kitta"].limits
    assert made.accounts["chanjing"].limits["upload"] == Limit(requests=1, seconds=86_400)


@pytest.mark.parametrize(("name", "value"), [case for case in UNUSABLE if case[0].endswith("_LIMIT")])
def test_a_limit_that_cannot_be_used_is_answered_with_one_that_can(name: str, value: str) -> None:
    assert problems(**{name: value}) == [f"{name} is {value!r}: set it to requests/seconds, as in 10/60"]


# -- secrets ---------------------------------------------------------------------------------------------


def test_no_message_shows_a_secret() -> None:
    """Every secret here is in a setting that has something wrong with it."""
    secrets = {
        "REDIS_URL": "redisss://user:hush-redis@host",
        "STORAGE_URL": "s4://hush-storage:hush@bucket",
        "PUBLIC_URL": "https//hush-public",
        "SECRET_KEYS": " ",
        "API_KEYS": "hush-key-without-a-name,studio:hush-one,studio:hush-two,:hush-three",
        "CHANJING_APP_ID": "hush-app",
        "KITTA_API_TOKEN": "hush-token",
        "KITTA_BASE_URL": "hush://hush-kitta@host",
    }
    message = "\n".join(problems(**secrets))
    assert "hush" not in message
    assert all(name in message for name in secrets if name not in ("CHANJING_APP_ID", "KITTA_API_TOKEN"))


def test_the_process_environment_is_read_where_no_other_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**ENOUGH, "STORAGE_URL": tmp_path.as_uri()}.items():
        monkeypatch.setenv(name, value)
    assert load(VENDORS.values()).storage_url == tmp_path.as_uri()
