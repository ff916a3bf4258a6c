"""Judges' servers that lie, files that are broken: what is never kept, repeated or awaited."""

import gzip
import json
import stat
import threading
import time
import warnings
import zlib
from pathlib import Path

import pytest
from test_benchmark import GOOD, KEY, Server, good, make_items, make_judge, reply, send
from typer.testing import CliRunner

from bt_adapter.benchmark import (
    Item,
    ModelJudge,
    OfflineJudge,
    Replies,
    Verdict,
    judge_all,
    messages,
    missing,
    parameters_of,
    read_items,
    summary,
)
from bt_adapter.benchmark.exchange import (
    LARGEST,
    TooLarge,
    check_url,
    printable,
    server_of,
    shown_url,
    unpacked,
)
from bt_adapter.benchmark.model_judge import key_of

FAULTS = Path(__file__).parent / "faults"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


# --- replies that are none ---


def completion(content, **more):
    return json.dumps(dict(model="m", choices=[dict(message=dict(content=content))]) | more)


NONE = {
    "list": completion(["x"]),
    "number": completion(4),
    "object": completion(dict(score=4)),
    "version": completion(GOOD, model=["m"]),
    "deep": "[" * 100_000,
    "choices": completion(GOOD, choices=dict(message=4)),
    "null": "null",
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_text_is_not_kept(name, tmp_path):
    with Server(lambda n, b, handler: send(handler, 200, NONE[name])) as server:
        judge = make_judge(server, tmp_path, retries=0)
        verdict = judge.judge(make_items(1)[0])
    assert verdict.error and verdict.score is None and not judge.replies.known
    assert not Replies(tmp_path / "replies.jsonl").known


def packed(handler, data, kind):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Encoding", kind)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def test_packed_replies_are_read(tmp_path):
    data = completion(GOOD).encode()
    for kind, pack in dict(gzip=gzip.compress, deflate=zlib.compress, identity=bytes).items():
        with Server(lambda n, b, h, kind=kind, pack=pack: packed(h, pack(data), kind)) as server:
            assert make_judge(server, tmp_path / kind).judge(make_items(1)[0]).score == 4


@pytest.mark.parametrize("kind", ["gzip", "deflate", "br", "gzip, gzip", "broken"])
def test_a_bomb_is_refused_and_not_kept(kind, tmp_path):
    bomb = dict(deflate=zlib.compress(bytes(2**26)), broken=b"no gzip").get(kind)
    bomb = bomb or gzip.compress(completion("a" * 2**26).encode())
    told = "gzip" if kind == "broken" else kind
    with Server(lambda n, b, handler: packed(handler, bomb, told)) as server:
        verdict = make_judge(server, tmp_path, retries=0).judge(make_items(1)[0])
    assert "the reply " in verdict.error and not Replies(tmp_path / "replies.jsonl").known


def test_a_body_without_end_is_cut_at_its_limit(tmp_path):
    sent = []

    def endless(number, body, handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(6400):  # 400 MB
            handler.wfile.write(bytes(2**16))
            sent.append(2**16)

    with Server(endless) as server:
        verdict = make_judge(server, tmp_path, retries=0, timeout=60).judge(make_items(1)[0])
    assert "larger than 1 MB" in verdict.error and sum(sent) < 2**26


def test_unpacking_stops_before_the_memory_is_full():
    assert unpacked([b"a"] * 3, "") == b"aaa"
    with pytest.raises(TooLarge):
        unpacked([bytes(LARGEST + 1)], "identity")
    with pytest.raises(TooLarge):
        unpacked([gzip.compress(bytes(2**28))], "gzip")


@pytest.mark.parametrize("part", ["head", "body", "nothing"])
@pytest.mark.timeout(60)
def test_a_server_that_trickles_is_given_up(part, tmp_path):
    ended = threading.Event()

    def trickles(number, body, handler):
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "5000")
            handler.end_headers()
        while not ended.wait(0.1):
            handler.wfile.write(b"" if part == "nothing" else b"a")
            handler.wfile.flush()

    with Server(trickles) as server:
        begin = time.monotonic()
        verdict = make_judge(server, tmp_path, retries=1, timeout=1.0).judge(make_items(1)[0])
        took = time.monotonic() - begin
        ended.set()
    assert verdict == Verdict(error="APITimeoutError") and len(server.bodies) == 2
    assert took < 30  # for ever, without a limit for the whole


# --- refusals ---

TEMPERATURE = "Unsupported value: 'temperature' does not support 0 with this model."


def refusing(status, message=None, **more):
    content = {} if message is None else dict(error=dict(message=message) | more)
    return lambda n, b, handler: send(handler, status, json.dumps(content))


@pytest.mark.parametrize("more", [dict(param="temperature"), {}])
def test_a_parameter_that_is_refused_is_told_after_one_try(more, tmp_path):
    items = read_items(FAULTS / "ten_predictions.json")
    with Server(refusing(400, TEMPERATURE, **more)) as server:
        with pytest.raises(ValueError, match="'temperature' does not support 0") as caught:
            judge_all(make_judge(server, tmp_path, retries=4), items, workers=4)
        assert len(server.bodies) == 1
    assert "--set temperature=" in str(caught.value) and "status 400" in str(caught.value)


def test_a_parameter_can_be_left_out_or_set(tmp_path):
    with Server(good) as server:
        settings = parameters_of(["temperature=", "seed=7", "reasoning_effort=low"])
        make_judge(server, tmp_path, parameters=settings).judge(make_items(1)[0])
        make_judge(server, tmp_path).judge(make_items(1)[0])
    first, second = server.bodies
    assert "temperature" not in first and second["temperature"] == 0
    assert (first["seed"], first["reasoning_effort"]) == (7, "low")


@pytest.mark.parametrize("status", [400, 402, 405, 410, 413, 422, 451])
def test_a_refusal_that_will_not_change_ends_after_two(status, tmp_path):
    with Server(refusing(status, "No.")) as server:
        with pytest.raises(ValueError, match=f"status {status}: No"):
            judge_all(make_judge(server, tmp_path), make_items(50), workers=4)
        assert len(server.bodies) == 2


def test_a_refused_question_costs_itself_alone(tmp_path):
    def filters(number, body, handler):
        two = any(f"What {i}?" in json.dumps(body) for i in (0, 3))
        refusing(400, f"filtered {two}")(number, body, handler) if two else reply(handler)

    with Server(filters) as server:
        judge, items = make_judge(server, tmp_path), make_items(6)
        verdicts = judge_all(judge, items, workers=1)
    assert [bool(v.error) for v in verdicts] == [True, False, False, True, False, False]
    assert missing(judge, items, verdicts)[0] == dict(question="0", why=verdicts[0].error)
    assert "filtered" in verdicts[0].error


def test_a_spent_account_is_no_busy_server(tmp_path):
    with Server(refusing(429, "You exceeded your quota", code="insufficient_quota")) as server:
        with pytest.raises(ValueError, match="exceeded your quota"):
            judge_all(make_judge(server, tmp_path, retries=0), make_items(20))
        assert len(server.bodies) == 1


def test_a_servers_words_are_short_and_printable(tmp_path):
    words = f"\x1b]0;PWN\x07 no\r\nsuch thing {KEY} {KEY[:12]}... " + "x" * 5000
    with Server(refusing(422, words)) as server:
        verdict = make_judge(server, tmp_path).judge(make_items(1)[0])
    assert verdict.error.isprintable() and len(verdict.error) < 300
    assert "such thing *** ***" in verdict.error and KEY[:8] not in verdict.error
    for body in ("<html>no</html>", "[1]", '{"error": 5}', '{"error": {"message": [1]}}'):
        with Server(lambda n, b, handler, body=body: send(handler, 400, body)) as server:
            verdict = make_judge(server, tmp_path).judge(make_items(1)[0])
            assert verdict.error == "status 400"


def test_the_version_of_a_judge_is_printable(tmp_path):
    with Server(lambda n, b, handler: reply(handler, model="m\x1b[31m")) as server:
        verdict = make_judge(server, tmp_path).judge(make_items(1)[0])
    assert verdict.version == "m [31m" and printable("a\x00b\x9b\u202e") == "a b"


# --- addresses and keys ---


def test_another_server_is_another_judge(tmp_path):
    item, path = make_items(1)[0], tmp_path / "replies.jsonl"
    with Server(good) as one, Server(good) as other:
        for server in (one, other, one, other):
            make_judge(server, tmp_path).judge(item)
        assert len(one.bodies) == len(other.bodies) == 1
        again = one.url.replace("http://", "HTTP://me:secret-word@") + "/"
        ModelJudge("stub", "qa", Replies(path), again).judge(item)
        assert len(one.bodies) == 1 and "secret-word" not in path.read_text()
    assert {json.loads(line)["server"] for line in path.open()} == {one.url, other.url}


def test_replies_of_an_older_version_stay_valid(tmp_path):
    item, path = make_items(1)[0], tmp_path / "replies.jsonl"
    asked = dict(model="stub", temperature=0, messages=messages(item, "qa"))
    old = dict(key=key_of(asked), item="0", reply=GOOD, version="old", date="2025-01-01")
    path.write_text(json.dumps(old) + "\n")
    judge = ModelJudge("stub", "qa", Replies(path), "http://127.0.0.1:9")
    assert judge.judge(item) == Verdict(4.0, True, "old", "2025-01-01")
    assert judge.replies.older == 1


URLS = [
    "ftp://user:PASSWORD@host/v1",
    "user:PASSWORD@host",
    "http://user:PASSWORD@/v1",
    "http://user:PASSWORD@host:port/",
    "http://user:PASSWORD@host:99999/",
    "https://user:PASS WORD@host",
    "http://user:PA@SSWORD@[host",
    "http://user:PASSWORD@h\u00f6st/v1",
    "http:host?key=PASSWORD",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_password_is_not_repeated(url, way, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url if way == "variable" else "")
    with pytest.raises(ValueError, match="URL") as caught:
        ModelJudge("m", "qa", Replies(tmp_path / "r"), url if way == "argument" else None)
    assert not {"PASS", "WORD"} & {w for w in ("PASS", "WORD") if w in str(caught.value)}


def test_addresses():
    assert server_of("HTTPS://Host:443/v1/") == server_of("https://me:x@host/v1?a=b")
    assert server_of("http://host:8000/v1") == "http://host:8000/v1"
    assert shown_url("https://me:x@host/v1?key=1") == "https://host/v1"
    check_url("http://[::1]:8000/v1")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("sk-1\n", "a line break"),
        ("sk-\u00fc1", "not ASCII"),
        (" sk-1", "a blank"),
        ("a\t", "a tab"),
    ],
)
def test_a_key_that_no_request_carries_is_told_by_name(name, value, what, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with Server(good) as server:
        with pytest.raises(ValueError, match=f"{name} holds .*{what}") as caught:
            judge_all(make_judge(server, tmp_path), make_items(20))
        assert not server.bodies and value not in str(caught.value)


# --- the file of replies ---


def test_the_file_of_replies_is_private(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.touch(0o644)
    row = dict(key="a", reply="4", version="m", date="d")
    Replies(path).add(row)
    Replies(tmp_path / "new/replies.jsonl").add(row)
    for file in (path, tmp_path / "new/replies.jsonl"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


ROWS = [
    b'{"key": "b", "rep',
    b"[]",
    b"7",
    b"[" * 100_000,
    b'{"key": "b", "version": "m", "date": "d"}',
    b'{"key": "b", "reply": null, "version": "m", "date": "d"}',
    b'{"key": "b", "reply": 4, "version": "m", "date": "d"}',
    b'{"key": ["b"], "reply": "4", "version": "m", "date": "d"}',
    b'{"key": "b", "reply": "4"}',
    b'{"key": "b", "reply": "\xff", "version": "m", "date": "d"}',
    b'"' + b"x" * 2**24 + b'"',
]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_broken_row_is_told_and_costs_itself_alone(row, tmp_path):
    whole = [json.dumps(dict(key=k, reply="4", version="m", date="d")).encode() for k in "ac"]
    path = tmp_path / "replies.jsonl"
    path.write_bytes(whole[0] + b"\n" + row + b"\n" + whole[1] + b"\n")
    with pytest.warns(UserWarning, match="line 2"):
        replies = Replies(path)
    assert [*replies.known] == ["a", "c"] and len(replies.problems) == 1


def test_a_folder_is_no_file_of_replies(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        Replies(tmp_path)


# --- what is unread ---


def test_what_is_unread_is_asked_again_where_that_is_wanted(tmp_path):
    said = ["I cannot say.", "Score (0-5): 2. Correct: yes", "maybe 3 or 4"]

    def unclear(number, body, handler):
        reply(handler, said[number - 1] if number <= 3 else GOOD)

    with Server(unclear) as server:
        judge, items = make_judge(server, tmp_path), make_items(3)
        verdicts = judge_all(judge, items, workers=1)
        assert [row["question"] for row in missing(judge, items, verdicts)] == ["0", "2"]
        judge_all(make_judge(server, tmp_path), items)
        assert len(server.bodies) == 3
        again = make_judge(server, tmp_path, ask_unread=True)
        verdicts = judge_all(again, items, workers=1)
        assert len(server.bodies) == 5 and [v.score for v in verdicts] == [4, 2, 4]
        assert judge_all(make_judge(server, tmp_path), items) == verdicts
        assert len(server.bodies) == 5


def test_what_stays_unread_is_asked_once_in_a_run(tmp_path):
    with Server(lambda n, b, handler: reply(handler, "Hm.")) as server:
        judge = make_judge(server, tmp_path, ask_unread=True)
        items = [Item(str(i), "v", "What?", "A cup.", "A cup.") for i in range(4)]
        judge_all(judge, items, workers=4)
        assert len(server.bodies) == 1


def test_two_means():
    verdicts = [Verdict(5.0, True), Verdict(), Verdict(error="x"), Verdict(3.0, False)]
    row = summary(OfflineJudge(), verdicts)
    assert (row["accuracy"], row["accuracy_all"]) == (50.0, 25.0)
    assert (row["score"], row["score_all"]) == (4.0, 2.0)
    assert (row["unparsed"], row["failed"], row["missing_percent"]) == (1, 1, 50.0)
    none = summary(OfflineJudge(), [Verdict(), Verdict()])
    assert none["accuracy"] == none["score"] == "" and none["score_all"] == 0
    assert summary(OfflineJudge(), [])["n"] == 0


def test_the_command_lists_what_is_missing(tmp_path, monkeypatch):
    from bt_adapter.cli import judge

    def unclear(number, body, handler):
        reply(handler, "Hm." if "What 1?" in json.dumps(body) else GOOD)

    rows = [dict(id=i, question=f"What {i}?", answer="a", pred="a") for i in range(3)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    options = [str(tmp_path / "p.json"), "--judge", "stub", "--json"]
    options += ["--replies", str(tmp_path / "r")]
    with Server(unclear) as server:
        options += ["--base-url", server.url]
        done = json.loads(CliRunner().invoke(judge.app, options).stdout)
        assert done["missing"] == [dict(question="1", why="unread")]
        assert done["verdict"][0]["score_all"] == round(8 / 3, 3)
        CliRunner().invoke(judge.app, [*options, "--ask-unread"])
        CliRunner().invoke(judge.app, [*options, "--set", "temperature=", "--parallel", "1"])
    assert len(server.bodies) == 3 + 1 + 3 and "temperature" not in server.bodies[-1]


def test_the_command_fails_if_nothing_is_read(tmp_path):
    from bt_adapter.cli import judge

    (tmp_path / "p.json").write_text(json.dumps([dict(question="q", answer="a", pred="a")]))
    options = [str(tmp_path / "p.json"), "--judge", "stub", "--replies", str(tmp_path / "r")]
    with Server(lambda n, b, handler: reply(handler, "Hm.")) as server:
        done = CliRunner().invoke(judge.app, [*options, "--base-url", server.url])
    assert isinstance(done.exception, ValueError) and "verdict" in done.stdout
    for extra in (["--ask-unread"], ["--set", "seed=1"], ["--base-url", "http://h"]):
        done = CliRunner().invoke(judge.app, [options[0], *extra])
        assert "belongs to --judge" in str(done.exception), extra


@pytest.mark.parametrize("setting", ["temperature", "=1", "a b=1", "\x1b[31m"])
def test_settings_that_are_none(setting, tmp_path):
    with pytest.raises(ValueError, match="NAME=VALUE") as caught:
        parameters_of([setting])
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="sets it itself"):
        ModelJudge("m", "qa", Replies(tmp_path / "r"), parameters=dict(messages=[]))


# --- items ---


@pytest.mark.parametrize("value", [[], {}, ["q"], None])
def test_a_question_is_a_text(value, tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps([dict(question=value, answer="a")]))
    with pytest.raises(ValueError, match="row 0"):
        read_items(path)


def test_deep_json_is_a_sentence(tmp_path):
    (tmp_path / "q.json").write_text("[" * 20_000)
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_items(tmp_path / "q.json")


def test_half_a_character_in_an_answer_can_be_sent(tmp_path):
    with Server(good) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        item = Item("0", "v", "What?", "A cup.", "a \ud83d cup")
        assert make_judge(server, tmp_path).judge(item).score == 4


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e9])
def test_times_that_no_reply_takes(timeout, tmp_path):
    with pytest.raises(ValueError, match="seconds"):
        ModelJudge("m", "qa", Replies(tmp_path / "r"), timeout=timeout)
