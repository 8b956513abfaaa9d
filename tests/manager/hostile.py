"""What an attacker sends: requests that are well-formed HTTP but wrong in every other way."""

from dataclasses import dataclass, field

JSON = [("content-type", "application/json")]
HUGE = 10**400
LONG = "x" * 200_000

BAD_BODIES: list[bytes] = [
    b"",
    b" ",
    b"\x00",
    b"{",
    b"}",
    b"[]",
    b"[[]]",
    b"null",
    b"true",
    b"0",
    b'""',
    b'"x"',
    b"{}{}",
    b"{'recipe': 'busybox'}",
    b"{recipe: 1}",
    b'{"recipe": "busybox",}',
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b'{"vcpu": NaN}',
    b'{"vcpu": Infinity}',
    b'{"vcpu": -Infinity}',
    b'{"vcpu": 1e999}',
    b'{"vcpu": 1' + b"0" * 5000 + b"}",
    b'{"vcpu": 1, "vcpu": 2}',
    b'{"recipe": "busybox", "recipe": "busybox"}',
    b'{"name": "\xff\xfe"}',
    b'{"name": "\xc0\xaf"}',
    b'{"name": "\xed\xa0\x80"}',
    b'{"name": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"name": "a\\u0000b"}',
    b'{"a\\u0000b": 1}',
    b'{"name": "\x01"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    '{"name": "x"}'.encode("utf-16"),
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'{"a":' * 70 + b"1" + b"}" * 70,
    b'{"__proto__": {}}',
    b'{"constructor": 1}',
    b'{"unknown": 1}',
    b'{"x": "' + b"y" * (2 << 20) + b'"}',
]

BAD_REFS = [
    "..", ".", "...", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "a%00b", "%00", "%ff",
    "%c0%af", "%ed%a0%80", "a%0d%0aX:y", "a%20b", "A", "-", "x" * 200, "x" * 5000, "a_b", "~",
    "*", "%25", "%", "%zz", "'%20OR%201=1--", "$(id)", "{ref}", "null", "0", "-1", "1e9",
    "0193c5e4-0000-7000-8000-000000000000", "0193C5E4-0000-7000-8000-000000000000",
    "00000000-0000-0000-0000-000000000000", "nobody",
]  # fmt: skip

BAD_QUERIES = {
    "/v1/vms": [
        "limit=0", "limit=-1", "limit=1001", "limit=abc", "limit=", "limit=1.5", "limit=NaN",
        f"limit={10**30}", f"limit={'9' * 5000}", "cursor=", "cursor=x", "cursor=..", "cursor=%00",
        "cursor=%ff", f"cursor={'x' * 5000}", "cursor=0193c5e4", "state=", "state=bad",
        "state=RUNNING", "state=running%00", "name=", "name=A", "name=%25", "name=a%00", "name=..",
        "name=%ff", "limit=1&limit=x", "tag=", "tag==x", "tag=a%20b", "tag=-a", "tag=a=%0a",
        f"tag=a={'x' * 256}", f"tag={'x' * 5000}", "tag=a=%00", "&".join(["tag=a"] * 17),
        "host=", "host=../x", "host=%ff", "host=%00", f"host={'x' * 300}", "project=other",
        "project=", "project=..", "project=default&project=other",
    ],
    "/v1/images": [
        "limit=0", "limit=-1", "limit=1001", "limit=x", f"limit={10**30}", "cursor=x", "cursor=%00",
        "kind=", "kind=bad", "kind=kernel%00", "name=", "name=..", "name=%ff", "unknown=1",
        "kind=kernel&kind=bad",
    ],
    "/v1/images/builds": ["limit=0", "limit=x", "cursor=1", f"cursor={10**30}", "unknown=1"],
    "/v1/events": [
        "limit=0", "limit=x", "cursor=-1", "cursor=x", f"cursor={10**30}", f"cursor={2**63}",
        "after=-1", "after=", "after=1.5", f"after={'9' * 5000}", "follow=perhaps", "vm=A",
        "vm=%00", "vm=nobody", "vm=0193c5e4-0000-7000-8000-000000000000", "state=bad", "state=",
        "reason=A b", "reason=", "reason=%ff", "since=yesterday", "since=2026-01-01T00:00:00",
        "since=1e400", "since=NaN", "since=0001-01-01T00:00:00%2B14:00", "project=other",
        "since=9999-12-31T23:59:59-14:00", "follow=1&after=-1", "follow=1&vm=nobody",
        "&".join(f"reason=r{number}" for number in range(17)),
    ],
    "/v1/hosts": ["limit=0", "limit=x", "cursor=1", "cursor=%00"],
}  # fmt: skip

BAD_HEADERS: list[list[tuple[str, str | bytes]]] = [
    [],
    [("content-type", "")],
    [("content-type", "text/plain")],
    [("content-type", "application/xml")],
    [("content-type", "multipart/form-data")],
    [("content-type", "multipart/form-data; boundary=x")],
    [("content-type", "application/x-www-form-urlencoded")],
    [("content-type", b"\xff\xfe")],
    [("content-type", "application/json; charset=utf-16")],
    [("content-type", "application/json"), ("content-type", "text/plain")],
    [*JSON, ("x-request-id", b"\xff")],
    [*JSON, ("x-request-id", "x" * 1000)],
    [*JSON, ("x-request-id", '"><script>')],
    [*JSON, ("idempotency-key", b"\xff\xfe")],
    [*JSON, ("idempotency-key", "x" * 10_000)],
    [*JSON, ("content-encoding", "gzip")],
    [*JSON, ("x-http-method-override", "DELETE")],
    [*JSON, ("x-forwarded-for", "127.0.0.1")],
    [*JSON, ("host", "evil.example")],
    [*JSON, ("range", "bytes=0-99999999999")],
    [*JSON, ("accept", "text/html")],
    [*JSON, ("cookie", "x" * 8000)],
]

BAD_PRECONDITIONS: list[str | bytes] = [
    "", "x", '"', '"a', 'W/"', "W/*", '"a" "b"', '"a",', "*,*", b'"\xff"', '"a\tb"',
    ",".join(['"a"'] * 33), '"' + "x" * 200 + '"', '"00000000000000000000000000000000"',
    'W/"00000000000000000000000000000000"',
]  # fmt: skip

BAD_TOKENS: list[bytes] = [
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer x",
    b"bearer nxs_",
    b"Bearer nxs_0_0",
    b"Bearer nxs_" + b"0" * 16 + b"_" + b"0" * 64,
    b"Bearer nxs_" + b"f" * 16 + b"_" + b"\xff" * 64,
    b"Bearer \xff\xfe",
    b"Bearer " + b"x" * 50_000,
    b"Basic YWRtaW46YWRtaW4=",
    b"Digest username=admin",
    b"Bearer null",
    b"Bearer ' OR 1=1 --",
    b"Bearer ../../admin.token",
    b"Negotiate",
]

METHODS = ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "LINK"]

_AUTH = b"Authorization: Bearer TOKEN\r\n"
MALFORMED: list[bytes] = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"hello\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /\r\n\r\n",
    b"get /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n",
    b"BREW /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/vms HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /v1/vms HTTX/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/vms\x00 HTTP/1.1\r\nHost: x\r\n" + _AUTH + b"\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n" + _AUTH + b"\r\n",
    b"GET v1/vms HTTP/1.1\r\nHost: x\r\n" + _AUTH + b"\r\n",
    b"GET http:// HTTP/1.1\r\nHost: x\r\n" + _AUTH + b"\r\n",
    b"GET /v1/vms HTTP/1.1\r\nHost : x\r\n" + _AUTH + b"\r\n",
    b"GET /v1/vms HTTP/1.1\r\nNo colon\r\n" + _AUTH + b"\r\n",
    b"GET /v1/vms HTTP/1.1\r\nX: a\x00b\r\n" + _AUTH + b"\r\n",
    b"GET /v1/vms HTTP/1.1\r\n: empty\r\n" + _AUTH + b"\r\n",
    b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n" + _AUTH + b"\r\n",
    b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n" + _AUTH + b"\r\n",
    b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",
]


@dataclass(frozen=True)
class Hostile:
    """One request; with ``authenticated`` the manager's own admin token goes with it."""

    method: str
    path: str
    headers: list[tuple[str, str | bytes]] = field(default_factory=list)
    body: bytes = b""
    authenticated: bool = True

    def raw(self, token: str) -> bytes:
        """The request as bytes on the wire."""
        headers: list[tuple[str, str | bytes]] = [*self.headers]
        if self.authenticated:
            headers.append(("authorization", f"Bearer {token}"))
        if not any(name == "host" for name, _ in headers):
            headers.append(("host", "127.0.0.1"))
        headers += [("content-length", str(len(self.body))), ("connection", "close")]
        lines = [f"{self.method} {self.path} HTTP/1.1".encode()]
        lines += [
            name.encode() + b": " + (value if isinstance(value, bytes) else value.encode())
            for name, value in headers
        ]
        return b"\r\n".join([*lines, b"", b""]) + self.body

    def __str__(self) -> str:
        return f"{self.method} {self.path[:100]} {str(self.headers)[:100]} {self.body[:100]!r}"


def hostile_requests(vm: str, image_id: str) -> list[Hostile]:
    """Everything above, sent to where it might hurt."""
    creates = ("/v1/vms", "/v1/images", "/v1/images/builds")
    made = [Hostile("POST", path, [*JSON], body) for path in creates for body in BAD_BODIES]
    made += [
        Hostile(method, f"{base}/{ref}")
        for ref in BAD_REFS
        for method, base in (
            ("GET", "/v1/vms"),
            ("DELETE", "/v1/vms"),
            ("DELETE", "/v1/images"),
            ("GET", "/v1/images/builds"),
            ("GET", "/v1/hosts"),
        )
    ]
    made += [Hostile("POST", f"/v1/vms/{ref}/start") for ref in BAD_REFS]
    made += [Hostile("GET", f"/v1/vms/{ref}/why") for ref in BAD_REFS]
    made += [
        Hostile("GET", f"{path}?{query}")
        for path, queries in BAD_QUERIES.items()
        for query in queries
    ]
    made += [Hostile("POST", "/v1/images", headers, b'{"x": 1}') for headers in BAD_HEADERS]
    made += [
        Hostile("DELETE", f"/v1/vms/{vm}", [("if-match", value)]) for value in BAD_PRECONDITIONS
    ]
    made += [
        Hostile(method, "/v1/vms", [("authorization", token)], authenticated=False)
        for token in BAD_TOKENS
        for method in ("GET", "POST")
    ]
    made += [
        Hostile(method, path)
        for method in METHODS
        for path in (*creates, f"/v1/vms/{vm}/start", "/v1/hosts", "/nowhere")
    ]
    made += [
        Hostile("DELETE", f"/v1/images/{image_id}"),
        Hostile("GET", "/v1/vms/../../etc/passwd"),
        Hostile("GET", "/v1//vms"),
        Hostile("GET", "//v1/vms"),
        Hostile("GET", "/v1/vms;x=y"),
        Hostile("GET", "/V1/VMS"),
        Hostile("GET", "/%76%31/nothing"),
        Hostile("GET", "/" + "a/" * 10_000),
        Hostile(
            "GET", "/v1/vms?" + "&".join(f"limit={number}" for number in range(5000)) + "&limit=x"
        ),
        Hostile("GET", "/v1/vms?token=TOKEN"),
        Hostile("GET", "/v1/vms?access_token=nxs_0_0"),
        Hostile("GET", "/docs"),
        Hostile("GET", "/redoc"),
        Hostile("GET", "/.env"),
        Hostile("GET", "/static/../../etc/passwd"),
    ]
    return made
