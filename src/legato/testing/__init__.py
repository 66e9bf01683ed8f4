"""For tests of what is built on Legato, and of what it can be built on.

Stores: ``check_store`` runs the contract of ``legato.log.Store`` on a store of yours; ``STORE_CHECKS`` are its parts,
so that a test runner can show them one by one. ``FakeClock`` is the time they run on. ``simulate`` lets nodes, people
and readers live on it while everything goes wrong.

Dialects: ``check_dialect`` runs the rules of frames on an encoder of yours.

Applications: ``Driver`` drives one in this process, without sockets; its streams can be stalled, and cut at any byte.
``check_cluster`` serves one on many nodes, which are killed, stopped and cut off.
"""

from __future__ import annotations

from .asgi import ASGIResponse, ASGIStream, Driver
from .contract import EMBEDDED_STORE_CHECKS, STORE_CHECKS, check_store
from .frames import check_dialect
from .place import FakeClock, MakeStore, Place
from .rules import PATIENCE, StoreCheck
from .trials import check_cluster, simulate

__all__ = [
    "EMBEDDED_STORE_CHECKS",
    "PATIENCE",
    "STORE_CHECKS",
    "ASGIResponse",
    "ASGIStream",
    "Driver",
    "FakeClock",
    "MakeStore",
    "Place",
    "StoreCheck",
    "check_cluster",
    "check_dialect",
    "check_store",
    "simulate",
]
