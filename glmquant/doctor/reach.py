"""Can the hubs be reached? Each is asked once, all at the same time, without a token."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from glmquant.doctor.checks import Check, State
from glmquant.errors import GlmquantError
from glmquant.hubs.addresses import check_endpoint, is_loopback, origin_of, shown
from glmquant.hubs.answers import Setback
from glmquant.hubs.known import HubName
from glmquant.hubs.protocols import PROTOCOLS
from glmquant.hubs.web import Web

GROUP: Final = "hubs"
_PATHS: Final = {
    HubName.MODELSCOPE: "/api/v1/models/ZhipuAI/GLM-4.6",
    HubName.MODELERS: "/api/v1/model/Modelers_Park/GLM-4.6-w8a8",
    HubName.HF: "/api/models/zai-org/GLM-4.6",
}
"""A model that each has; that it has not is an answer, too."""

_ANSWERS: Final = (200, 401, 404)
_PROXIES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def check_hubs(environment: Mapping[str, str], limit_seconds: float) -> list[Check]:
    """Whether each hub answers.

    Args:
        environment: The variables of this process.
        limit_seconds: How long each may take.

    Returns:
        One check a hub.
    """
    found: dict[HubName, Check] = {}
    lock = threading.Lock()

    def ask(hub: HubName) -> None:
        check = _ask(hub, environment, limit_seconds)
        with lock:
            found[hub] = check

    # Daemons: a resolver that hangs cannot be ended, and must not keep the program.
    threads = [threading.Thread(target=partial(ask, hub), daemon=True) for hub in HubName]
    for thread in threads:
        thread.start()
    end = time.monotonic() + limit_seconds + 1
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    with lock:
        late = f"no answer within {limit_seconds:g} s"
        return [found.get(hub) or _unreachable(hub, late, environment) for hub in HubName]


def _ask(hub: HubName, environment: Mapping[str, str], limit_seconds: float) -> Check:
    protocol = PROTOCOLS[hub]
    named = (environment.get(variable, "").strip() for variable in protocol.endpoint_variables)
    address = next(filter(None, named), protocol.default_endpoint)
    web = None
    try:
        endpoint = check_endpoint(address if "://" in address else f"https://{address}")
        web = Web(
            endpoint,
            None,
            token_variable="",
            connections=1,
            stall_seconds=limit_seconds,
        )
        begun = time.monotonic()
        with web.open(endpoint + _PATHS[hub]) as answer:
            status, kind = answer.status, answer.headers.get("Content-Type", "")
        seconds = time.monotonic() - begun
    except Setback as error:
        return _unreachable(hub, error.text, environment)
    except GlmquantError as error:
        text = ": ".join(filter(None, (error.what, error.where, error.found)))
        return Check(GROUP, hub.value, State.WARNING, text, error.hint or _remedy(environment))
    finally:
        if web is not None:
            web.close()
    text = f"{shown(endpoint)} answers in {seconds:.2f} s" + _way(endpoint, environment)
    if status not in _ANSWERS:
        text = f"{shown(endpoint)} answers HTTP {status}" + _way(endpoint, environment)
        return Check(GROUP, hub.value, State.WARNING, text, _remedy(environment))
    if "json" not in kind:
        text = f"{shown(endpoint)} answers with {kind or 'no type'}, not JSON: a portal in between?"
        return Check(GROUP, hub.value, State.WARNING, text, _remedy(environment))
    return Check(GROUP, hub.value, State.OK, text)


def _unreachable(hub: HubName, text: str, environment: Mapping[str, str]) -> Check:
    return Check(GROUP, hub.value, State.WARNING, text, _remedy(environment))


def _way(endpoint: str, environment: Mapping[str, str]) -> str:
    proxy = _proxy(environment)
    is_local = is_loopback(origin_of(endpoint).host)
    return f", by {proxy}" if proxy and not is_local else ""


def _proxy(environment: Mapping[str, str]) -> str | None:
    """The proxy that is set, without its password."""
    for name in _PROXIES:
        if value := environment.get(name):
            before, at, host = value.rpartition("@")
            scheme, mark, _ = before.partition("://")
            return f"{name}={scheme + mark if mark else ''}***@{host}" if at else f"{name}={value}"
    return None


def _remedy(environment: Mapping[str, str]) -> str:
    """What may be missing between here and there."""
    proxy = _proxy(environment)
    steps = [f"check {proxy}" if proxy else "set https_proxy where there is a proxy"]
    if not any(environment.get(name) for name in _CERTIFICATES):
        steps.append("SSL_CERT_FILE where it has a certificate of its own")
    steps.append("a mirror: MODELSCOPE_ENDPOINT, HF_ENDPOINT; or fetch elsewhere and copy")
    return "; ".join(steps)


def offline() -> Check:
    """The line for where nobody was to be asked."""
    return Check(GROUP, "hubs", State.NOTE, "not asked: --offline")
