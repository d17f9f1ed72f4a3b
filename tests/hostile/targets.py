"""Links to where no link may lead. `PORT` stands for the port at which somebody listens, on 127.0.0.1 and on ::1."""

from __future__ import annotations

from typing import Final

#: Public as far as anybody can tell; who connects to it is refused by the watch, and counted.
PUBLIC: Final = "93.184.216.34"
PUBLIC_TOO: Final = "2606:4700::1111"

#: What a resolver answers, one answer a question; the last one repeats.
NAMES: Final[dict[str, list[list[str]]]] = {
    "loopback.example": [["127.0.0.1"]],
    "loopback6.example": [["::1"]],
    "both.example": [["127.0.0.1", "::1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "nat64.example": [["64:ff9b::7f00:1"]],
    "zone.example": [["fe80::1%lo"]],
    "any.example": [["0.0.0.0"]],  # noqa: S104  nothing is bound to it
    "private.example": [["10.0.0.1", "192.168.0.1"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "public-first.example": [[PUBLIC, "127.0.0.1"]],
    "public-last.example": [["::1", PUBLIC]],
    "rebinds.example": [[PUBLIC], ["127.0.0.1"]],
    "rebinds6.example": [[PUBLIC_TOO], ["::1"]],
    "flickers.example": [["127.0.0.1"], [PUBLIC], ["127.0.0.1"]],
    "xn--fsq.example": [["127.0.0.1"]],
    "honest.example": [[PUBLIC]],
}

TARGETS: Final[dict[str, str]] = {
    **{
        f"spelled {spelling}": f"https://{spelling}:PORT/film.mp4"
        for spelling in (
            *("127.0.0.1", "2130706433", "017700000001", "0x7f000001", "0x7F000001", "0177.0.0.1", "0x7f.0.0.1"),
            *("127.1", "127.0.1", "0", "0x0", "127.0.0.1.", "127.000.000.001"),
            "0.0.0.0",  # noqa: S104  nothing is bound to it
            *("１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "%31%32%37.0.0.1", "127.0.0.1%00.example", "127.0.0.1%2f"),
            *(
                "[::1]",
                "[::]",
                "[0:0:0:0:0:0:0:1]",
                "[::ffff:127.0.0.1]",
                "[::ffff:7f00:1]",
                "[::127.0.0.1]",
                "[::1%25lo]",
            ),
            *(
                "[64:ff9b::127.0.0.1]",
                "[64:ff9b:1::7f00:1]",
                "[2002:7f00:1::]",
                "[2001:0:7f00:1::1]",
                "[::ffff:0:7f00:1]",
            ),
            *("[fe80::1]", "[fe80::1%25lo]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]"),
            *(
                "169.254.169.254",
                "[::ffff:a9fe:a9fe]",
                "0251.0376.0251.0376",
                "2852039166",
                "100.100.100.200",
                "192.0.0.192",
            ),
            *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
            *("localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost", "LoCaLhOsT"),
        )
    },
    **{f"named {name}": f"https://{name}:PORT/film.mp4" for name in NAMES if name != "honest.example"},
    **{
        f"named {name} in capitals": f"https://{name.upper()}.:PORT/film.mp4"
        for name in ("loopback.example", "both.example")
    },
    "a name of Chinese": "https://例.example:PORT/film.mp4",
    **{
        f"{what} before the host": f"https://{user}127.0.0.1:PORT/film.mp4"
        for what, user in {
            "a user": "user@",
            "a user and a password": "user:secret@",
            "a public name": "vendor.example@",
            "a public name and its port": "vendor.example:443@",
            "two users": "a@b@",
            "a backslash": "vendor.example\\@",
            "a hash": "vendor.example#@",
            "a question": "vendor.example?@",
            "a tab": "\t",
            "a line's end": "\n",
            "a NUL": "\0",
        }.items()
    },
    "a backslash behind the host": "https://127.0.0.1:PORT\\@vendor.example/film.mp4",
    "backslashes for slashes": "https:\\\\127.0.0.1:PORT\\film.mp4",
    "one slash": "https:/127.0.0.1:PORT/film.mp4",
    "three slashes": "https:///127.0.0.1:PORT/film.mp4",
    "no scheme": "//127.0.0.1:PORT/film.mp4",
    "no host": "https://:PORT/film.mp4",
    "a space before": " https://127.0.0.1:PORT/film.mp4",
    **{
        f"at port {port}": f"https://127.0.0.1:{port}/film.mp4"
        for port in ("0", "22", "443", "6379", "65536", "-1", "٤٤٣", "")
    },
    **{
        f"by {scheme}": f"{scheme}://127.0.0.1:PORT/film.mp4"
        for scheme in (
            *(
                "http",
                "HTTP",
                "ftp",
                "gopher",
                "dict",
                "ldap",
                "tftp",
                "ws",
                "wss",
                "redis",
                "unix",
                "httpss",
                "https+unix",
            ),
            *("http+unix", "jar:https", "view-source:https", "file"),
        )
    },
    "a file": "file:///etc/passwd",
    "a file of localhost": "file://localhost/etc/passwd",
    "data": "data:video/mp4;base64,AAAA",
    "a script": "javascript:alert(1)",
    "a socket": "unix:///tmp/redis.sock",
    "nothing": "",
    "a word": "film.mp4",
    "a path": "/etc/passwd",
}
