"""What was written down to be sent: values, bodies, targets, headers, and whole requests that no client would make."""

from __future__ import annotations

from typing import Final

MANY: Final = 100_000


def deep(depth: int, opening: bytes = b"[", closing: bytes = b"]", inside: bytes = b"") -> bytes:
    return opening * depth + inside + closing * depth


#: JSON values, and what only looks like one: good anywhere that a value may stand.
VALUES: Final[tuple[bytes, ...]] = (
    *(b"null", b"true", b"false", b"0", b"-0", b"-1", b"0.1", b"1e308", b"1e999", b"-1e999", b"1e-999", b"NaN"),
    *(b"nan", b"Infinity", b"-Infinity", b"0x1f", b"01", b"+1", b".5", b"5.", b"1e", b"1_000", b"9" * 20, b"9" * 400),
    *(b"9" * 5000, b"-" + b"9" * 5000, b"0." + b"3" * 5000, b"1e" + b"9" * 5000, b"9007199254740993"),
    *(b"18446744073709551616", b'""', b'" "', b'"\\u0000"', b'"\x00"', b'"\\ud800"', b'"\\udc00\\ud800"'),
    *(b'"\\ud83d\\ude00"', b'"\\u202e"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf8\x88\x80\x80\x80"'),
    *(b'"\xef\xbf\xbe"', b'"\\x41"', b'"\\u00"', b'"a\nb"', b'"a\\nb\\r\\nc: d"', b'"' + b"w" * MANY + b'"'),
    *(b'"' + b"\xe4\xb8\xad" * 5000 + b'"', b"'a'", b"undefined", b'"../../etc/passwd"'),
    *(b'"${jndi:ldap://127.0.0.1/a}"', b'"{{7*7}}"', b'"\' OR 1=1 --"', b'"<script>alert(1)</script>"'),
    *(b'"__proto__"', b'"callsheet:job:x"', b'"\\u001b[31m"', b'"http://127.0.0.1/"', b'"javascript:alert(1)"'),
    *(b'"file:///etc/passwd"', b"[]", b"{}", b"[[]]", b'{"a": {"a": {}}}', b"[null, [], {}]", b'{"": ""}'),
    *(b'{"a": 1, "a": 2}', b"[1,]", b'{"a": 1,}', deep(40), deep(200), deep(900), deep(10_000), deep(MANY)),
    *(deep(10_000, b'{"a":', b"}", b"1"), deep(MANY, b'{"":', b"}", b"{}"), b"[" + b"0," * 10_000 + b"0]"),
    *(b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(10_000)) + b"}", b"/* */ 1", b"// 1\n1"),
)

#: Bodies that are no JSON object, or that not everybody reads in the same way.
BODIES: Final[dict[str, bytes]] = {
    "nothing": b"",
    "white space": b" \r\n\t ",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf{}",
    "UTF-16": '{"status": "completed"}'.encode("utf-16"),
    "UTF-32": '{"status": "completed"}'.encode("utf-32"),
    "UTF-7": b"+AHsAfQ-",
    "two documents": b"{}{}",
    "a document and a NUL": b"{}\x00",
    "cut short": b'{"status": "comple',
    "cut short in an escape": b'{"status": "\\u00',
    "a form": b"status=completed&id=1",
    "a multipart form": b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
    "HTML": b"<!doctype html><h1>502</h1>",
    "XML with an entity": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "YAML": b"!!python/object/apply:os.system ['id']",
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "msgpack": b"\x81\xa6status\xa9completed",
    "every byte": bytes(range(256)),
    "only NULs": b"\x00" * 1000,
    "only quotes": b'"' * MANY,
    "only backslashes": b'"' + b"\\" * MANY,
    "only colons": b":" * MANY,
    "colons in a string": b'{"a": "' + b'\\":' * MANY + b'"}',
    "one key many times": b"{" + b'"status": "failed",' * 50_000 + b'"status": []}',
    "many empty objects": b'{"data": [' + b"{}," * MANY + b"{}]}",
    "many keys": b"{" + b",".join(b'"%d":[]' % n for n in range(MANY)) + b"}",
    "a long key": b'{"' + b"k" * MANY + b'": 1}',
    "keys twice, spelled twice": b'{"status": "failed", "st\\u0061tus": "completed"}',
    "keys twice inside": b'{"data": {"status": "failed", "status": "completed"}}',
    "bad UTF-8 as a key": b'{"\xff": 1, "status": "processing"}',
    "a surrogate as a key": b'{"\\ud800": 1}',
    "an answer of ours": b'{"received": true}',
}

#: Paths that try to be another, or none. `@ID@` is a job's id, `@TOKEN@` a good callback token of kitta.
TARGETS: Final[tuple[str, ...]] = (
    *("/", "//", "/./", "/../", "/..", "/.", "/v1", "/v1/", "/v1//jobs", "//v1/jobs", "/v1/jobs/", "/v1/./jobs"),
    *("/V1/jobs", "/v1/JOBS", "/v1/../v1/jobs", "/v1/%2e%2e/v1/jobs", "/%2e%2e/%2e%2e/etc/passwd"),
    *("/v1/jobs/..%2f..%2fetc%2fpasswd", "/v1/jobs/%00", "/v1/jobs/%", "/v1/jobs/@ID@%00", "/v1/jobs/@ID@/"),
    *("/v1/jobs/@ID@/..", "/v1/jobs/@ID@%2ftimeline", "/v1/jobs/@ID@;a=b", "/v1/jobs/@ID@%20"),
    *("/v1/jobs/@ID@%0d%0aset-cookie:%20a=b", "/v1/jobs/%c0%ae%c0%ae", "/v1/jobs/%ff%fe", "/v1/jobs/%ed%a0%80"),
    *("/v1/jobs/%u0041", "/v1/jobs/%zz", "/v1/jobs/@ID@/outputs/-1", "/v1/jobs/@ID@/outputs/0x0"),
    *("/v1/jobs/@ID@/outputs/99999999999999999999", "/v1/jobs/@ID@/outputs/../timeline"),
    *("/v1/jobs/@ID@/outputs/%2e%2e%2f%2e%2e", "/v1/jobs/@ID@/outputs/0%00", "/v1/jobs/@ID@/outputs/٣"),
    *("/v1/jobs/@ID@/outputs/½", "/v1/jobs/job_" + "0" * 24, "/v1/jobs/job_" + "v" * 24, "/v1/jobs/JOB_" + "0" * 24),
    *("/v1/jobs/*", "/v1/jobs/job_*", "/v1/jobs/" + "a" * 8000, "/v1/quarantine/qua_" + "0" * 24),
    *("/v1/quarantine/..", "/v1/quarantine/%2a", "/v1/costs/", "/v1/vendors/kitta", "/healthz/..", "/healthz%00"),
    *("/callbacks", "/callbacks/", "/callbacks//", "/callbacks/kitta", "/callbacks/kitta/"),
    *("/callbacks/kitta//@TOKEN@", "//callbacks/kitta/@TOKEN@", "/callbacks/./kitta/@TOKEN@"),
    *("/callbacks/kitta/@TOKEN@/", "/callbacks/kitta/@TOKEN@%00", "/callbacks/kitta/@TOKEN@%20"),
    *("/callbacks/kitta/@TOKEN@;", "/callbacks/KITTA/@TOKEN@", "/callbacks/kitta%00/@TOKEN@"),
    *("/callbacks/chanjing/../kitta/@TOKEN@", "/CALLBACKS/kitta/@TOKEN@", "/v1/callbacks/kitta/@TOKEN@"),
    *("/callbacks/kitta/%ff.%ff", "/callbacks/%e4%b8%ad/%e5%af%b9", "/callbacks/kitta/" + "a" * 8000),
    *("/callbacks/kitta/" + "." * 8000, "/callbacks/" + "%00" * 2000, "http://127.0.0.1/v1/jobs"),
    *("http://callsheet.example/v1/jobs", "https://user:pass@callsheet.example:443/v1/jobs", "http:///v1/jobs"),
    *("http://", "*", "callsheet.example:443", "?", "?limit=1", "/v1/jobs?", "/v1/jobs??", "/v1/jobs?limit"),
    *("/v1/jobs?limit=1&limit=2", "/v1/jobs#a", "\\v1\\jobs", "/v1/jobs?limit=1%00", "/v1/jobs?limit=١"),
    *("/v1/jobs?cursor=%ff", "/v1/jobs?vendor=%ed%a0%80", "/v1/jobs?a[]=b&a[$ne]=c", "/v1/jobs?vendor_job_id=*"),
    *("/v1/jobs?" + "&".join(f"p{n}=1" for n in range(2000)), "/v1/jobs?" + "&" * 20_000, "/v1/jobs?" + "%" * 20_000),
    *("/v1/jobs?limit=" + "9" * 10_000, "/v1/costs?since=0000-01-01", "/v1/costs?since=2026-02-31&until=1"),
    *("/v1/costs?group=" + ",".join(["vendor"] * 1000), "/v1/quarantine?cursor=-1-qua_"),
    *("/v1/quarantine?cursor=9999999999999999-qua_" + "0" * 24, "/v1/jobs?vendor_job_id=" + "%f0%9f%98%80" * 60),
    *("/docs", "/.env", "/.git/config", "/openapi.json", "/metrics", "/admin", "/server-status", "/cgi-bin/..%2f"),
    *("/index.php?a=<script>", "/static/..%2f..%2fetc%2fpasswd", "/%2f%2fevil.example"),
)  # fmt: skip

METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS",
    "TRACE", "CONNECT", "PROPFIND", "PURGE", *("get", "G", "POSTT"),
)  # fmt: skip

#: One header each, in the spelling in which it is sent.
HEADERS: Final[tuple[bytes, ...]] = (
    *(b"content-encoding: gzip", b"content-encoding: br", b"content-encoding: deflate", b"content-encoding: zstd"),
    *(b"content-encoding: identity, gzip", b"content-encoding: GZIP", b"content-encoding: "),
    *(b"content-encoding: " + b"x" * 8000, b"content-type: text/html", b"content-type: application/xml"),
    *(b"content-type: multipart/form-data; boundary=x", b"content-type: application/json; charset=utf-16"),
    *(b"content-type: ", b"content-type: \xff/\xfe", b"content-type: " + b"a" * 8000, b"accept: text/html"),
    *(b"accept: */*;q=NaN", b"accept: " + b"," * 8000, b"accept-encoding: gzip;q=1e999", b"range: bytes=-0"),
    *(b"range: bytes=0-0,0-0,0-0", b"range: bytes=99999999999999999999-", b"range: lines=1-2"),
    *(b"range: bytes=" + b"0-," * 2000, b"if-none-match: " + b'"a",' * 2000, b"if-modified-since: never"),
    *(b"if-range: \xff", b"expect: 200-ok", b"expect: 100-continue, 100-continue", b"idempotency-key: "),
    *(b"idempotency-key: \xff\xfe", b"idempotency-key: " + b"a" * 256, b"idempotency-key: a:b c"),
    *(b"idempotency-key: *", b"authorization: ", b"authorization: Bearer", b"authorization: Bearer "),
    *(b"authorization: Basic Og==", b"authorization: Bearer \xff\xfe"),
    *(b"authorization: " + b"Bearer " + b"a" * 16_000, b"authorization: bearer\tx", b"authorization: Digest a=b"),
    *(b"cookie: " + b"a=b;" * 4000, b"host: evil.example", b"host: ", b"host: a b", b"x-forwarded-for: 127.0.0.1"),
    *(b"x-forwarded-for: " + b"1.1.1.1," * 2000, b"x-forwarded-proto: \xff", b"x-http-method-override: DELETE"),
    *(b"x-original-url: /v1/jobs", b"x-rewrite-url: /v1/jobs", b"forwarded: for=\"[::1]\";proto=https"),
    b"upgrade: websocket\r\nconnection: upgrade",
    b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__",
    *(b"connection: close, content-length", b"connection: \x80", b"te: trailers", b"trailer: authorization"),
    *(b"\xc3\xa9: a", b"a: \x80\x81\x82", b"a:", b"a: \t ", b"last-event-id: \xff", b"transfer-encoding: identity"),
    *(b"date: yesterday", b"via: " + b"1.1 a," * 2000),
)  # fmt: skip

_HOST: Final = b"host: callsheet.example\r\n"
_INNER: Final = b"GET /v1/jobs HTTP/1.1\r\n" + _HOST + b"@AUTH@\r\n\r\n"
_POST: Final = b"POST @PATH@ HTTP/1.1\r\n" + _HOST + b"@AUTH@\r\n"
_CHUNKED: Final = _POST + b"transfer-encoding: chunked\r\n"

#: Whole requests. `@PATH@` is a target that takes a POST, `@AUTH@` a header with a key; inside of some is another
#: request, which nobody may answer. Incomplete ones are waited for, and get no answer here.
RAW: Final[dict[str, bytes]] = {
    "both lengths, chunked first": _CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n" + _INNER,
    "both lengths, length first": _POST + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nX" + _INNER,
    "two lengths": _POST + b"content-length: 2\r\ncontent-length: 90\r\n\r\n{}" + _INNER,
    "two equal lengths": _POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "two lengths in one": _POST + b"content-length: 2, 2\r\n\r\n{}",
    **{
        f"a length of {value.decode('latin-1')!r}": _POST + b"content-length: " + value + b"\r\n\r\n{}"
        for value in (b"+2", b"-2", b"0x2", b"2 2", b"2;", b"", b"two", b"2e0", b"9" * 30, b"\xb2")
    },
    **{
        f"a coding of {value.decode('latin-1')!r}": _POST + b"transfer-encoding: " + value + b"\r\n\r\n0\r\n\r\n"
        for value in (
            *(b"xchunked", b"chunked, identity", b"identity, chunked", b"CHUNKED", b" chunked", b"chunked\x0b"),
            *(b"\x0bchunked", b"gzip, chunked", b"chunked, chunked", b'"chunked"'),
        )
    },
    "two codings": _CHUNKED + b"transfer-encoding: identity\r\n\r\n0\r\n\r\n" + _INNER,
    "a coding with a space before its colon": _POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + _INNER,
    "a folded coding": _POST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + _INNER,
    **{
        f"a chunk of {value.decode('latin-1')!r}": _CHUNKED + b"\r\n" + value + b"\r\n{}\r\n0\r\n\r\n"
        for value in (
            *(b"-2", b"+2", b"0x2", b"2 ", b" 2", b"2;a=b", b'2;a="\r\n"', b"g", b"", b"ffffffffffffffffff"),
            *(b"0000000000000000000002", b"2\x00"),
        )
    },
    "a chunk longer than it says": _CHUNKED + b"\r\n1\r\n{}\r\n0\r\n\r\n",
    "a chunk shorter than it says": _CHUNKED + b"\r\n5\r\n{}\r\n0\r\n\r\n",
    "chunks that end with bare LF": _CHUNKED + b"\r\n2\n{}\n0\n\n" + _INNER,
    "a chunk's extension with LF": _CHUNKED + b"\r\n2;\n{}\r\n0\r\n\r\n",
    "no chunk": _CHUNKED + b"\r\n",
    "trailers": _CHUNKED + b"\r\n2\r\n{}\r\n0\r\ncontent-length: 90\r\nauthorization: Bearer x\r\n\r\n",
    "bare LF": b"POST @PATH@ HTTP/1.1\nhost: a\n@AUTH@\ncontent-length: 2\n\n{}",
    "bare CR": b"POST @PATH@ HTTP/1.1\rhost: a\r@AUTH@\rcontent-length: 2\r\r{}",
    "LF in a header": _POST + b"a: b\ncontent-length: 90\r\n\r\n" + _INNER,
    "CR in a header": _POST + b"a: b\rc: d\r\n\r\n",
    "NUL in a header": _POST + b"a: \x00\r\n\r\n",
    "NUL in a name": _POST + b"a\x00: b\r\n\r\n",
    "NUL in the line": b"POST @PATH@\x00 HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a space in a name": _POST + b"a b: c\r\n\r\n",
    "a space before a colon": _POST + b"content-length : 2\r\n\r\n{}",
    "a name of nothing": _POST + b": a\r\n\r\n",
    "no colon": _POST + b"abc\r\n\r\n",
    "a folded header": _POST + b"a: b\r\n c\r\n\r\n",
    "a folded first header": b"POST @PATH@ HTTP/1.1\r\n host: a\r\n\r\n",
    "no host": b"POST @PATH@ HTTP/1.1\r\n@AUTH@\r\ncontent-length: 2\r\n\r\n{}",
    "two hosts": _POST + b"host: evil.example\r\ncontent-length: 2\r\n\r\n{}",
    "many headers": _POST + b"".join(b"x-%d: y\r\n" % n for n in range(2000)) + b"\r\n",
    "a flood of headers": _POST + b"".join(b"x-%d: y\r\n" % n for n in range(MANY)) + b"\r\n",
    "one header many times": _POST + b"content-type: a\r\n" * 1500 + b"content-length: 2\r\n\r\n{}",
    "a long header": _POST + b"x: " + b"y" * MANY + b"\r\n\r\n",
    "a long name": _POST + b"x" * MANY + b": y\r\n\r\n",
    "a long line": b"POST @PATH@?" + b"a" * MANY + b" HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET @PATH@\r\n",
    "HTTP/1.0": b"POST @PATH@ HTTP/1.0\r\n@AUTH@\r\ncontent-length: 2\r\n\r\n{}",
    **{
        f"version {value.decode()!r}": b"POST @PATH@ " + value + b"\r\n" + _HOST + b"\r\n"
        for value in (
            *(b"HTTP/9.9", b"HTTP/2.0", b"HTTP/1", b"HTTP/1.1.1", b"HTTP/-1.1", b"http/1.1", b"HTTPS/1.1", b"ICY", b""),
        )
    },
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "Redis": b"*1\r\n$8\r\nFLUSHALL\r\n",
    "SMTP": b"EHLO evil.example\r\nMAIL FROM:<>\r\n",
    "the PROXY protocol": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + _POST + b"\r\n",
    "nothing but line ends": b"\r\n" * 10_000,
    "every byte": bytes(range(256)) * 10,
    "tabs in the line": b"POST\t@PATH@\tHTTP/1.1\r\n" + _HOST + b"\r\n",
    "two spaces in the line": b"POST  @PATH@  HTTP/1.1\r\n" + _HOST + b"\r\n",
    "no target": b"POST HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a target of UTF-8": "POST /v1/jöbs HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
    "a target of bytes": b"POST @PATH@\xff\xfe HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a body that a GET has": b"GET @PATH@ HTTP/1.1\r\n" + _HOST + b"@AUTH@\r\ncontent-length: 2\r\n\r\n{}",
    "CONNECT": b"CONNECT 127.0.0.1:6379 HTTP/1.1\r\nhost: 127.0.0.1:6379\r\n\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "a WebSocket": b"GET @PATH@ HTTP/1.1\r\n" + _HOST + b"upgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n\x81\x05Hello",
    "h2c": b"POST @PATH@ HTTP/1.1\r\n" + _HOST
    + b"@AUTH@\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{}",
    "a request behind a close": _POST + b"connection: close\r\ncontent-length: 2\r\n\r\n{}" + _INNER,
}  # fmt: skip
