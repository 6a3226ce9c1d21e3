"""Disclosure: checks that no response and no log reveals what belongs to another tenant.

Sends nothing; `benchmarks/promises/isolation.py` decides what is asked and what is to be refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.server import Server
from benchmarks.harness.violations import Violations
from benchmarks.promises.raw_http import error_defect
from benchmarks.promises.tenants import Tenant


class DisclosureChecks:
    """Checks of responses, which record violations."""

    def __init__(self, tenants: Sequence[Tenant], violations: Violations) -> None:
        self._tenants, self._violations = tenants, violations
        self._store_ids: dict[str, str] = {}

    def record_stores(self, stores: Sequence[dict[str, Any]]) -> None:
        """Add vector stores whose ids must not be revealed to other tenants, either."""
        self._store_ids |= {store["name"]: store["id"] for store in stores}

    def store_id(self, tenant: Tenant) -> str:
        """The id of a tenant's vector store, or its corpus's name if the id is not recorded."""
        return self._store_ids.get(tenant.corpus, tenant.corpus)

    def check_foreign(
        self,
        action: str,
        tenant: Tenant | None,
        reply: httpx.Response,
        allowed: tuple[str, ...] = (),
    ) -> None:
        """Check that nothing of another tenant is in a response, except what the request named."""
        for other in self._tenants:
            if other is not tenant:
                foreign_texts = {
                    other.secret,
                    other.example_secret,
                    other.corpus,
                    other.key,
                    self.store_id(other),
                } - set(allowed)
                revealed = [
                    text
                    for text in foreign_texts
                    if text in reply.text and not any(text in part for part in allowed)
                ]
                self._violations.check(
                    not revealed,
                    "wrong",
                    f"foreign in {action}",
                    f"{revealed} in {reply.text[:300]}",
                )

    def check_refused(
        self,
        action: str,
        tenant: Tenant | None,
        reply: httpx.Response,
        status: int,
        allowed: tuple[str, ...],
    ) -> None:
        """Check that a response is an error with this status, and reveals nothing."""
        if reply.status_code >= 500:
            self._violations.record(
                "server_errors", action, f"{reply.status_code} {reply.text[:160]}"
            )
            return
        self._violations.check(
            reply.status_code == status,
            "wrong",
            action,
            f"{reply.status_code} is not {status}: {reply.text[:160]}",
        )
        reason = error_defect(reply.content, allowed) if reply.status_code >= 400 else None
        self._violations.check(reason is None, "wrong", action, str(reason))
        self.check_foreign(action, tenant, reply, allowed)


def check_logs(server: Server, folder: Path, tenants: Sequence[Tenant], found: Violations) -> None:
    """Check that no example is in the server's log or in those of Ray's processes."""
    runs = {process.environ().get("TMPDIR", "") for process in server.workers().values()}
    logs = [folder / "server.log", *(log for run in runs for log in Path(run).rglob("*.log"))]
    found.check(len(logs) > 1, "wrong", "logs", f"Ray's logs are not in {runs}")
    for log in logs:
        text = log.read_text(errors="replace")
        told = [tenant.name for tenant in tenants if tenant.example_secret in text]
        found.check(not told, "leaked", "logs", f"examples of {told} in {log.name}")
