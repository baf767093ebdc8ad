"""``glmquant smoke`` on services that answer rightly, wrongly, or not at all."""

from __future__ import annotations

import json
import re
import shlex
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from glmquant.cli import main
from glmquant.smoke import requests
from glmquant.smoke.causes import Service as Known
from glmquant.smoke.causes import cause_of
from glmquant.smoke.drafts import interval
from glmquant.smoke.findings import Sign, failed
from glmquant.smoke.garble import loop_of
from tests.conftest import Ran, run_glmquant
from tests.servers import COUNTERS
from tests.services import Change, Handler, a_service, rendered

KEY = "secret-7731"


def smoked(
    change: Change | None = None,
    *words: object,
    raw: Mapping[str, Callable[[Handler], None]] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The report about a service that is changed so."""
    with a_service(change, raw, **settings) as service:
        ran = run_glmquant("smoke", service.url, "--json", "--timeout", 5, *words)
    found: dict[str, Any] = ran.events[-1]
    assert found["event"] == "smoke", found
    assert ran.exit_code == (1 if found["verdict"] == "failed" else 0)
    return found


def signs(found: dict[str, Any]) -> dict[str, set[str]]:
    """Request → the signs found in it, without the requests in which there is none."""
    return {
        request["name"]: {each["sign"] for each in request["findings"]}
        for request in found["requests"]
        if request["findings"]
    }


def finding(found: dict[str, Any], name: str, sign: str) -> dict[str, Any]:
    (request,) = [each for each in found["requests"] if each["name"] == name]
    (first, *_) = [each for each in request["findings"] if each["sign"] == sign]
    result: dict[str, Any] = first
    return result


def changed(*kinds: str, **values: Any) -> Change:
    """Other values in the answers of some kinds of request."""

    def change(kind: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        if kind in kinds:
            answer.update(values)

    return change


def test_a_right_service_is_ok_in_all_that_is_asked() -> None:
    with a_service() as service:
        ran = run_glmquant("smoke", service.url)
        kinds = [kind for kind, _ in service.asked]
    assert ran.exit_code == 0, ran.stdout
    rows = [line.split()[:2] for line in ran.stdout.splitlines() if line.startswith("  ")]
    assert rows == [["ok", name] for name in ("server", *requests.NAMES)]
    assert "verdict: ok: 10 ok" in ran.stdout
    assert f"next: glmquant verify DIR --url {service.url}" in ran.stdout
    assert kinds == ["plain", "plain", "plain", "long", "tools", "on", "off"]


def test_both_names_of_the_field_of_thoughts_are_read_and_told() -> None:
    for field in ("reasoning", "reasoning_content"):
        found = smoked(None, "--only", "plain,streaming,thinking-on", field=field)
        assert signs(found) == {}
        assert f"thoughts in '{field}'" in found["requests"][1]["text"]


LOOP = "so it is and " * 40
CASES: dict[str, tuple[Change, str, str, str]] = {
    "nothing is said": (changed("plain", content="", reasoning=""), "plain", "empty", "failed"),
    "a limit of its own cuts the answer": (
        changed("plain", finish="length", tokens=9),
        *("plain", "cut", "failed"),
    ),
    "the answer does not end": (
        changed("plain", finish="length", tokens=1024),
        *("plain", "long", "warning"),
    ),
    "more tokens come than were allowed": (
        changed("plain", tokens=1025),
        *("plain", "cut", "failed"),
    ),
    "the engine aborts": (changed("plain", finish="abort"), "plain", "unfinished", "failed"),
    "no reason is told": (changed("plain", finish=None), "plain", "unfinished", "failed"),
    "bytes are no UTF-8": (
        changed("plain", content="Par\ufffd\ufffdis"),
        *("plain", "replaced", "failed"),
    ),
    "one character alone": (changed("plain", content="!" * 500), "plain", "looped", "failed"),
    "the answer is a loop": (changed("plain", content=LOOP), "plain", "looped", "failed"),
    "thoughts are a loop": (
        changed("plain", content="", reasoning=LOOP),
        *("plain", "looped", "failed"),
    ),
    "thinking is not parsed": (
        changed("plain", content="<think>A capital.</think>Paris", reasoning=""),
        *("plain", "think_tag", "failed"),
    ),
    "half of the thinking is not parsed": (
        changed("on", content="17 and 25.</think>42", reasoning=""),
        *("thinking-on", "think_tag", "failed"),
    ),
    "marks stand in the thoughts": (
        changed("on", reasoning="<think>17 and 25."),
        *("thinking-on", "think_tag", "failed"),
    ),
    "turns go on": (
        changed("plain", content="Paris<|user|>And Rome?"),
        *("plain", "turn_mark", "failed"),
    ),
    "the first token of prompts is said": (
        changed("plain", content="[gMASK]<sop>Paris"),
        *("plain", "turn_mark", "failed"),
    ),
    "a call nobody asked for": (
        changed("plain", content="Paris <tool_call>x"),
        *("plain", "call_tag", "warning"),
    ),
    "a wrong answer": (changed("plain", content="Rome."), "plain", "wrong", "warning"),
    "thoughts alone": (changed("plain", content=""), "plain", "thoughts_only", "warning"),
    "the needle is not found": (changed("long", content="1"), "long", "no_needle", "warning"),
    "the prompt is cut": (changed("long", prompt_tokens=512), "long", "short_prompt", "failed"),
    "the long answer is a loop": (changed("long", content=LOOP), "long", "looped", "failed"),
    "no thoughts": (changed("on", reasoning=""), "thinking-on", "no_thoughts", "warning"),
    "it thinks without an end": (
        changed("on", content=""),
        *("thinking-on", "thoughts_only", "warning"),
    ),
    "another parser takes all for thoughts": (
        changed("off", content="", reasoning="42"),
        *("thinking-off", "all_thoughts", "failed"),
    ),
    "thinking is off and the model thinks": (
        changed("off", reasoning="17 and 25."),
        *("thinking-off", "thinks_still", "warning"),
    ),
    "arguments are no JSON": (
        changed("tools", calls=[{"name": "get_weather", "arguments": "{'city': Oslo}"}]),
        *("tools", "bad_call", "failed"),
    ),
    "arguments are a list": (
        changed("tools", calls=[{"name": "get_weather", "arguments": "[1]"}]),
        *("tools", "bad_call", "failed"),
    ),
    "an argument is missing": (
        changed("tools", calls=[{"name": "get_weather", "arguments": '{"city": "Oslo"}'}]),
        *("tools", "bad_call", "failed"),
    ),
    "an argument is of another type": (
        changed(
            "tools",
            calls=[{"name": "get_weather", "arguments": '{"city": "Oslo", "days": "3"}'}],
        ),
        *("tools", "bad_call", "failed"),
    ),
    "an argument is not in the schema": (
        changed(
            "tools",
            calls=[{"name": "get_weather", "arguments": '{"city": "Oslo", "days": 3, "x": 1}'}],
        ),
        *("tools", "bad_call", "failed"),
    ),
    "another function is called": (
        changed("tools", calls=[{"name": "get_weather<arg_key>city", "arguments": "{}"}]),
        *("tools", "bad_call", "failed"),
    ),
    "a call ends as an answer": (changed("tools", finish="stop"), "tools", "call_finish", "failed"),
    "a call is not parsed": (
        changed("tools", calls=[], finish="stop", content="<tool_call>get_weather\n<arg_key>city"),
        *("tools", "call_tag", "failed"),
    ),
    "no call": (
        changed("tools", calls=[], finish="stop", content="I cannot know."),
        *("tools", "no_call", "warning"),
    ),
    "no text beside no call": (
        changed("tools", "named", calls=[], finish="stop"),
        *("tools", "empty", "failed"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_an_answer_is_told_with_its_cause(case: str) -> None:
    change, name, sign, verdict = CASES[case]
    found = smoked(change, "--only", name)
    seen = finding(found, name, sign)
    assert seen["verdict"] == verdict == found["verdict"]
    assert seen["cause"] and seen["next"] and seen["what"]
    assert set(signs(found)) == {name}


def test_a_loop_of_greedy_decoding_alone_is_a_warning() -> None:
    def change(kind: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        if "temperature" in body:
            answer["content"] = "Paris. " + LOOP

    found = smoked(change, "--only", "plain")
    assert signs(found) == {"plain": {"looped_greedily"}}
    assert found["verdict"] == "warning"


def test_an_answer_of_any_length_is_judged_by_its_beginning_and_said_to_be_too_long() -> None:
    long = "-".join(map(str, range(30_000))) + "</think>"
    found = smoked(changed("plain", content=long, tokens=9), "--only", "plain")
    assert signs(found) == {"plain": {"endless", "wrong"}}
    said = finding(found, "plain", "endless")["what"]
    assert f"{len(long):,} characters came" in said
    assert "only the first 100,000 are judged" in said
    assert found["requests"][1]["answer"] == long[:100_000]


def test_rules_and_lists_are_no_loops() -> None:
    assert loop_of("| a | b |\n|" + "-" * 80) == ("", 0)
    assert loop_of("\n".join(f"{number}. item" for number in range(100))) == ("", 0)
    assert loop_of("for row in rows:\n    print(row)\n" * 3) == ("", 0)
    assert loop_of("x" + "ab" * 48) == ("ab", 96)


def test_a_character_that_the_limit_cut_is_none_that_is_wrong() -> None:
    cut = changed("plain", content="Paris \ufffd", finish="length", tokens=1024)
    assert signs(smoked(cut, "--only", "plain")) == {"plain": {"long"}}


def test_two_greedy_answers_that_part_at_a_near_tie_are_no_failure() -> None:
    for gap, expected in ((0.1, {}), (3.0, {"again": {"unlike_itself"}})):
        count = iter(range(9))

        def change(
            kind: str,
            body: dict[str, Any],
            answer: dict[str, Any],
            gap: float = gap,
            count: Any = count,
        ) -> None:
            answer["gap"] = gap
            answer["content"] += " It is old." if next(count) else " It is new."

        found = smoked(change, "--only", "again")
        assert signs(found) == expected
        assert found["verdict"] == ("failed" if expected else "ok")
        assert "the same 9 tokens, then others" in found["requests"][1]["text"]


def test_without_log_probabilities_two_answers_are_a_warning() -> None:
    count = iter(range(9))

    def no_logprobs(kind: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        answer["content"] += str(next(count))

    with a_service(no_logprobs) as service:
        whole = Handler.completion

        class Refusing(Handler):
            def completion(self, body: Any, answer: Any, tokens: Any) -> dict[str, Any]:
                return whole(self, {**body, "logprobs": False}, answer, tokens)

        service.RequestHandlerClass = Refusing
        ran = run_glmquant("smoke", service.url, "--only", "again", "--json")
    assert signs(ran.events[-1]) == {"again": {"unlike_itself"}}
    assert ran.events[-1]["verdict"] == "warning"
    assert ran.exit_code == 0


def test_a_server_that_refuses_log_probabilities_is_asked_without_them() -> None:
    with a_service() as service:

        class Refusing(Handler):
            def completion(self, body: Any, answer: Any, tokens: Any) -> dict[str, Any]:
                if "logprobs" in body:
                    self.send(400, '{"error": {"message": "max_logprobs is 0"}}')
                return super().completion(body, answer, tokens)

        service.RequestHandlerClass = Refusing
        ran = run_glmquant("smoke", service.url, "--only", "plain,again", "--json")
    assert ran.exit_code == 0
    assert ran.events[-1]["requests"][2]["text"] == "the same 41 characters"


def without(*parts: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line for line in lines if not any(part in line for part in parts)]


STREAMS: dict[str, tuple[Callable[[list[str]], list[str]], str, str]] = {
    "without an end": (without("[DONE]"), "stream", "ends without [DONE]"),
    "without usage": (without("usage"), "stream", "no usage"),
    "without a reason": (
        lambda lines: [line.replace('"stop"', "null") for line in lines],
        *("stream", "0 pieces name a finish reason"),
    ),
    "with many reasons": (
        lambda lines: [line.replace("null", '"stop"') for line in lines],
        *("stream", "text follows the piece that names a finish reason"),
    ),
    "with half an event": (
        lambda lines: [*lines[:3], lines[3][:20], *lines[4:]],
        *("stream", "an event is no piece"),
    ),
    "with a line that is none": (
        lambda lines: ["<html>", *lines],
        *("stream", "a line is no event: <html>"),
    ),
    "with more behind its end": (
        lambda lines: [*lines, lines[1]],
        *("stream", "something follows [DONE]"),
    ),
    "with an error": (
        lambda lines: [*lines[:3], 'data: {"error": {"message": "EngineCore died"}}'],
        *("stream", "EngineCore died"),
    ),
    "that lacks a piece": (
        lambda lines: [*lines[:5], *lines[6:]],
        *("stream_differs", "twice"),
    ),
}


@pytest.mark.parametrize("case", STREAMS)
def test_what_is_wrong_with_a_stream_is_told(case: str) -> None:
    events, sign, what = STREAMS[case]
    found = smoked(None, "--only", "plain,streaming", events=events)
    assert found["verdict"] == "failed"
    told = [each["what"] for each in found["requests"][-1]["findings"]]
    assert any(what in each for each in told), told
    assert finding(found, "streaming", sign)["verdict"] == "failed"
    assert set(signs(found)) == {"streaming"}


def test_comments_and_names_of_events_are_part_of_a_stream() -> None:
    found = smoked(
        None,
        *("--only", "streaming"),
        events=lambda lines: [": ping", *(f"event: message\r\n{line}\r" for line in lines)],
    )
    assert signs(found) == {}


def test_a_stream_of_another_type_or_in_one_piece_is_told() -> None:
    def whole(handler: Handler) -> None:
        events = [
            {"choices": [{"delta": {"content": "Paris " * 40}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 40}},
        ]
        lines = [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
        handler.send(200, "\n\n".join(lines), "text/plain")

    found = smoked(None, "--only", "streaming", raw={"stream": whole})
    assert {"stream", "one_piece"} <= signs(found)["streaming"]
    assert "content type is text/plain" in finding(found, "streaming", "stream")["what"]


def test_a_whole_answer_in_place_of_a_stream_is_another_kind() -> None:
    found = smoked(
        None, "--only", "streaming", raw={"stream": lambda handler: handler.send(200, "")}
    )
    assert signs(found) == {"streaming": {"strange"}}


@pytest.mark.parametrize(
    ("changed_prompt", "sign"),
    [
        (lambda body: rendered(body)[3:-1], "no_turns"),
        (lambda body: rendered({**body, "chat_template_kwargs": {}}), "no_switch"),
        (
            lambda body: rendered({key: each for key, each in body.items() if key != "tools"}),
            "tools_unseen",
        ),
    ],
)
def test_a_lost_template_is_seen_in_the_prompts(changed_prompt: Any, sign: str) -> None:
    found = smoked(None, "--only", "template", prompt=changed_prompt)
    assert found["verdict"] == "failed"
    assert "template" in finding(found, "template", sign)["cause"]


def test_thinking_that_the_prompt_does_not_switch_off_is_a_failure() -> None:
    thinks = changed("off", content="<think>17</think>42")
    lost = smoked(
        thinks,
        *("--only", "thinking-off"),
        prompt=lambda body: rendered({**body, "chat_template_kwargs": {}}),
    )
    assert finding(lost, "thinking-off", "thinks_still")["verdict"] == "failed"
    unknown = smoked(
        thinks,
        *("--only", "thinking-off"),
        raw={"/tokenize": lambda handler: handler.send(404, "")},
    )
    assert finding(unknown, "thinking-off", "thinks_still")["verdict"] == "failed"


def test_tool_calls_that_are_switched_off_are_told_with_the_flags() -> None:
    said = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    text = json.dumps({"error": {"message": said, "code": 400}})
    found = smoked(None, "--only", "tools", raw={"tools": lambda handler: handler.send(400, text)})
    seen = finding(found, "tools", "no_tools")
    assert "--enable-auto-tool-choice with --tool-call-parser glm45" in seen["next"]


@pytest.mark.parametrize(
    ("call", "parser"),
    [
        ("<tool_call>get_weather\n<arg_key>city</arg_key>", "glm45"),
        ("<tool_call>get_weather<arg_key>city</arg_key>", "glm47"),
    ],
)
def test_the_form_of_a_call_tells_which_parser_it_wants(call: str, parser: str) -> None:
    found = smoked(
        changed("tools", calls=[], finish="stop", content=f"I ask. {call}"), "--only", "tools"
    )
    cause = finding(found, "tools", "call_tag")["cause"]
    assert re.findall(r"glm4\d", cause) == [parser]


def test_a_named_function_separates_the_models_choice_from_a_broken_server() -> None:
    silent = changed("tools", calls=[], finish="stop", content="I cannot know.")
    found = smoked(silent, "--only", "tools")
    assert (
        "with the function named as the one to call, a call was made"
        in (finding(found, "tools", "no_call")["what"])
    )

    def broken(kind: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        silent(kind, body, answer)
        if kind == "named":
            answer["calls"] = [{"name": "get_weather", "arguments": "{"}]

    assert signs(smoked(broken, "--only", "tools")) == {"tools": {"no_call", "bad_call"}}
    refused = {"named": lambda handler: handler.send(500, "EngineCore")}
    assert signs(smoked(silent, "--only", "tools", raw=refused)) == {"tools": {"broken"}}


@pytest.mark.parametrize(
    ("acceptance", "expected", "verdict"),
    [(0.0, {"rejected"}, "failed"), (0.4, {"seldom"}, "warning"), (0.8, set(), "ok")],
)
def test_drafts_that_are_not_accepted_are_a_broken_mtp_layer(
    acceptance: float, expected: set[str], verdict: str
) -> None:
    found = smoked(None, acceptance=acceptance)
    assert signs(found).get("drafts", set()) == expected
    assert found["verdict"] == verdict
    assert f"of {7 * 25})" in found["requests"][-1]["text"]
    assert any("what others ask" in note for note in found["notes"])
    if acceptance == 0:
        seen = finding(found, "drafts", "rejected")
        assert "a broken MTP layer" in seen["cause"]
        assert seen["next"] == "glmquant verify DIR --source SOURCE"


def test_the_interval_of_a_rate_is_wilsons() -> None:
    assert [round(each, 4) for each in interval(0, 510)] == [0.0, 0.0075]
    assert [round(each, 4) for each in interval(5, 10)] == [0.2366, 0.7634]
    assert interval(7, 7)[1] == 1.0


def test_a_few_drafts_are_not_judged_by_their_rate() -> None:
    found = smoked(None, "--only", "drafts", acceptance=0.0)
    assert found["requests"][-1]["verdict"] == "not judged"
    assert found["requests"][-1]["text"] == "0 drafts: too few to judge"


def test_counters_that_contradict_each_other_are_not_judged() -> None:
    for acceptance in (-1.0, 2.0):
        found = smoked(None, "--only", "plain,drafts", acceptance=acceptance)
        assert found["requests"][-1]["verdict"] == "not judged"
        assert "contradict" in found["requests"][-1]["text"]


def test_counters_of_another_process_are_not_judged() -> None:
    """They may be higher than before: the time at which the process began tells."""
    told = iter([(7, 3, 1.7e9), (900, 800, 1.7e9 + 60)])

    def metrics(handler: Handler) -> None:
        drafts, accepted, started = next(told)
        text = COUNTERS % (drafts, drafts, accepted, accepted)
        handler.send(200, f"{text}process_start_time_seconds {started}\n")

    found = smoked(None, "--only", "plain,drafts", raw={"/metrics": metrics})
    assert found["requests"][-1]["verdict"] == "not judged"
    assert "of another process" in found["requests"][-1]["text"]


def test_tokens_without_drafts_are_a_warning_where_drafts_are_counted() -> None:
    counters = COUNTERS % (7, 7, 3, 3)
    found = smoked(
        changed("plain", tokens=40),
        *("--only", "plain,drafts"),
        raw={"/metrics": lambda handler: handler.send(200, counters)},
    )
    assert signs(found) == {"drafts": {"no_drafts"}}


def test_log_probabilities_of_another_form_are_none() -> None:
    with a_service() as service:

        class Other(Handler):
            def completion(self, body: Any, answer: Any, tokens: Any) -> dict[str, Any]:
                whole = super().completion(body, answer, tokens)
                whole["choices"][0]["logprobs"] = {"content": [{"token": 7}]}
                return whole

        service.RequestHandlerClass = Other
        ran = run_glmquant("smoke", service.url, "--only", "plain,again", "--json")
    assert ran.events[-1]["verdict"] == "ok"


def test_a_server_without_counters_does_not_draft() -> None:
    for raw in ({}, {"/metrics": lambda handler: handler.send(200, "<html>")}):
        found = smoked(None, "--only", "plain,drafts", acceptance=None, raw=raw)
        assert found["requests"][-1]["verdict"] == "not judged"
        assert found["verdict"] == "ok"
    found = smoked(
        None,
        *("--only", "plain,drafts"),
        raw={"/metrics": lambda handler: handler.send(200, "python_info 1.0\n")},
    )
    assert "speculative decoding is off" in found["requests"][-1]["text"]
    assert any("--speculative-config" in note for note in found["notes"])


def test_a_server_without_tokenize_is_judged_by_its_answers() -> None:
    found = smoked(None, raw={"/tokenize": lambda handler: handler.send(404, "")})
    verdicts = {each["name"]: each["verdict"] for each in found["requests"]}
    assert verdicts.pop("template") == "not judged"
    assert set(verdicts.values()) == {"ok"}


def test_a_short_context_has_no_long_prompt() -> None:
    models = [{"id": "glm", "max_model_len": 120}]
    found = smoked(None, "--only", "long", models=models)
    assert found["requests"][-1]["verdict"] == "not judged"
    assert "too few for a long prompt" in found["requests"][-1]["text"]


def test_prompt_and_answer_fit_into_what_the_server_takes() -> None:
    for length in (1024, 4096, 133_000):
        with a_service(models=[{"id": "glm", "max_model_len": length}]) as service:
            ran = run_glmquant("smoke", service.url, "--json")
            assert ran.exit_code == 0, ran.stdout
            for _, body in service.asked:
                assert len(rendered(body)) + body["max_tokens"] <= length
            (body,) = [body for kind, body in service.asked if kind == "long"]
            assert len(rendered(body)) > 0.85 * min(8000, length * 3 // 4 - 256)


# What comes in place of an answer.


def html(handler: Handler) -> None:
    handler.send(200, "<html>welcome</html>", "text/html")


def moved(handler: Handler) -> None:
    handler.send(302, "", Location="http://127.0.0.1:9/v1")


def resets(handler: Handler) -> None:
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def raw_bytes(handler: Handler, *parts: bytes) -> None:
    for part in parts:
        handler.connection.sendall(part)


def drips(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with pytest.raises(OSError):
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)


def drips_headers(handler: Handler) -> None:
    with pytest.raises(OSError):
        handler.connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.connection.sendall(b"X")
            time.sleep(0.05)


def continues(handler: Handler) -> None:
    with pytest.raises(OSError):
        while True:
            handler.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.01)


def streams_forever(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    event = {"choices": [{"delta": {"content": "Paris "}, "finish_reason": None}]}
    with pytest.raises(OSError):
        while True:
            handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            time.sleep(0.01)


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def hangs(handler: Handler) -> None:
    handler.connection.settimeout(20)
    handler.connection.recv(1)  # until the other side gives up


IN_PLACE: dict[str, tuple[Callable[[Handler], None], str]] = {
    "a page": (html, "strange"),
    "a redirect": (moved, "redirected"),
    "a reset": (resets, "silent"),
    "nothing": (lambda handler: handler.connection.close(), "silent"),
    "silence": (hangs, "silent"),
    "a dripping body": (drips, "silent"),
    "dripping headers": (drips_headers, "silent"),
    "100 Continue for ever": (continues, "silent"),
    "half an answer": (breaks_off, "silent"),
    "no HTTP": (lambda handler: raw_bytes(handler, b"SSH-2.0-OpenSSH_9.6\r\n"), "silent"),
    "101": (
        lambda handler: raw_bytes(handler, b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        "refused",
    ),
    "503": (lambda handler: handler.send(503, "no healthy upstream"), "broken"),
    "429": (lambda handler: handler.send(429, '{"detail": "slow down"}'), "refused"),
    "404": (lambda handler: handler.send(404, '{"error": "no such model"}'), "not_there"),
    "401": (lambda handler: handler.send(401, '{"error": "Unauthorized"}'), "key"),
    "no JSON": (lambda handler: handler.send(200, "{"), "strange"),
    "deep JSON": (lambda handler: handler.send(200, "[" * 100_000), "strange"),
    "another schema": (lambda handler: handler.send_json({"output": "Paris"}), "strange"),
    "choices that are none": (lambda handler: handler.send_json({"choices": []}), "strange"),
    "text that is none": (
        lambda handler: handler.send_json({"choices": [{"message": {"content": 7}}]}),
        "strange",
    ),
    "calls that are none": (
        lambda handler: handler.send_json({"choices": [{"message": {"tool_calls": [1]}}]}),
        "strange",
    ),
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_whatever_comes_in_place_of_an_answer_ends_in_a_verdict(case: str) -> None:
    answer, sign = IN_PLACE[case]
    found = smoked(None, "--only", "plain,long", "--timeout", "0.5", raw={"plain": answer})
    assert found["verdict"] == "failed"
    assert signs(found) == {"plain": {sign}}  # the other request is asked and is right
    assert finding(found, "plain", sign)["next"]


@pytest.mark.parametrize("case", IN_PLACE)
def test_whatever_comes_in_place_of_the_list_of_models_ends_in_a_verdict(case: str) -> None:
    answer, sign = IN_PLACE[case]
    found = smoked(None, "--only", "plain", "--timeout", "0.5", raw={"/v1/models": answer})
    assert signs(found) == {"server": {sign}}
    assert [each["verdict"] for each in found["requests"]] == ["failed", "not judged"]


def test_a_stream_that_does_not_end_ends_with_the_time_of_a_request() -> None:
    found = smoked(
        None,
        *("--only", "streaming", "--timeout", "0.5"),
        raw={"stream": streams_forever},
    )
    assert signs(found) == {"streaming": {"silent"}}


def test_a_model_that_is_named_needs_no_list() -> None:
    raw = {"/v1/models": lambda handler: handler.send(404, "")}
    found = smoked(None, "--only", "plain", "--model", "glm", raw=raw)
    assert [each["verdict"] for each in found["requests"]] == ["warning", "ok"]


def test_a_model_that_is_not_served_is_wrong_usage() -> None:
    with a_service() as service:
        ran = run_glmquant("smoke", service.url, "--model", "glm-5")
    assert ran.exit_code == 2
    assert "hint:     --model glm" in ran.stderr
    with a_service(models=[{"id": "\x1b[2J"}]) as service:
        ran = run_glmquant("smoke", service.url, "--model", "glm")
    assert "\x1b" not in ran.stderr and ran.exit_code == 2


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ran = run_glmquant("smoke", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert ran.exit_code == 1
    assert "failed server: the engine cannot be reached" in ran.stdout
    assert f"verdict: failed: 1 failed, {len(requests.NAMES)} not judged" in ran.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["127.0.0.1:8000"], "glmquant smoke http://127.0.0.1:8000"),
        (["ftp://127.0.0.1"], "that is no address"),
        (["http://"], "that is no address"),
        (["http://127.0.0.1:99999"], "that is no address"),
        (["http://[::1"], "that is no address"),
        ([f"http://me:{KEY}@127.0.0.1:9"], "VLLM_API_KEY"),
        (["http://127.0.0.1:9", "--only", "plain,all"], "there is no such request"),
        (["http://127.0.0.1:9", "--only", "plain", "--skip", "plain"], "nothing is left"),
        (["http://127.0.0.1:9", "--timeout", "nan"], "that is no time"),
        (["http://127.0.0.1:9", "--timeout", "inf"], "that is no time"),
        (["http://127.0.0.1:9", "--timeout", "1e400"], "that is no time"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_asked(words: list[str], said: str) -> None:
    ran = run_glmquant("smoke", *words)
    assert (ran.exit_code, said in ran.stderr) == (2, True), ran.stderr
    assert KEY not in ran.stderr


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", f"{KEY}\n")

    def echo(handler: Handler) -> None:
        handler.send(401, json.dumps({"error": f"wrong key {handler.headers['Authorization']}"}))

    shown: list[Ran] = []
    with a_service(raw={"long": echo}) as service:
        shown += [run_glmquant("smoke", service.url, *more) for more in ([], ["--json"])]
        assert set(service.keys) == {f"Bearer {KEY}"}
    for ran in shown:
        assert ran.exit_code == 1
        assert "wrong key Bearer (the key)" in ran.stdout
        assert KEY not in ran.stdout + ran.stderr


def test_what_a_server_says_cannot_move_the_cursor() -> None:
    with a_service(changed("plain", content="\x1b[2JParis\u202e<|user|>")) as service:
        ran = run_glmquant("smoke", service.url, "--only", "plain")
    assert "\x1b" not in ran.stdout and "\u202e" not in ran.stdout
    assert r"\x1b[2JParis\u202e<|user|>" in ran.stdout


@pytest.mark.parametrize("sign", list(Sign))
def test_every_sign_has_a_cause_and_a_command_that_can_be_pasted(sign: Sign) -> None:
    known = Known("http://127.0.0.1:8000", model="my glm")
    cause = cause_of(failed(sign, "x"), known)
    assert cause.text
    assert "{" not in cause.hint
    checked = subprocess.run(["bash", "-n", "-c", cause.hint], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    words = shlex.split(cause.hint, comments=True)
    assert words[0] in {"glmquant", "curl", "read"}
    if words[0] == "curl":
        assert words[-1].startswith(known.url)
    else:
        verb, *given = words[words.index("glmquant") + 1 :]
        command = main.commands[verb]
        # Every option is one that the verb has: click refuses others here.
        context = command.make_context(verb, given)
        if verb == "smoke":
            assert (context.params["url"], context.params["model"]) == (known.url, "my glm")


@pytest.mark.parametrize("kind", ["tools", "whole"])
def test_the_last_line_is_a_command(kind: str) -> None:
    raw = {kind: lambda handler: handler.send(500, '{"error": "EngineCore failed"}')}
    with a_service(None, raw) as service:
        ran = run_glmquant("smoke", service.url, "--only", "plain,tools")
    assert ran.exit_code == 1
    wanted = f"next: curl -i {service.url}/health   # then the server's own log: the first error"
    assert ran.stdout.splitlines()[-1].startswith(wanted)


def test_a_checkpoint_that_lies_here_is_named_in_what_to_do(tmp_path: Any) -> None:
    folder = tmp_path / "my GLM"
    folder.mkdir()
    models = [{"id": "glm", "root": str(folder), "max_model_len": 8192}]
    found = smoked(changed("plain", content="Par\ufffdis"), "--only", "plain", models=models)
    assert found["next"] == f"glmquant verify '{folder}'"
