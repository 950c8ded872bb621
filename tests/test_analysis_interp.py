"""Explanations and their scores, against a small chat server whose answers are scripted."""

import json
import logging
import re
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_study import context_of, tabled
from http_server import Handler, LocalServer
from test_analysis_contexts import D, base, config  # noqa: F401

from sparse_dict import errors
from sparse_dict.analysis import frame, stage
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, judge
from sparse_dict.analysis.features import top_contexts
from sparse_dict.analysis.interp import cases as interp_cases
from sparse_dict.analysis.interp import llm, questions
from sparse_dict.analysis.interp.questions import UNREADABLE, Case, Excerpt
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.report import page as report
from sparse_dict.analysis.sections import claims
from sparse_dict.analysis.sections import interp as section
from sparse_dict.analysis.source import open_source
from sparse_dict.config import InterpConfig, TrackingConfig
from sparse_dict.errors import UserError

KEY = "sk-secret"
HANG_UP, NO_CHAT = 0, 1
ORACLE_WORD = re.compile(r"hot(\d+)")  # a token "hot7" has activation 7 in the cases below


class ChatServer(LocalServer):
    """Answers with `answer(system, user)`; with the next of `statuses` first, while there are.

    HANG_UP and NO_CHAT among them: no answer at all, and 200 with something else.
    """

    def __init__(self):
        self.requests = []
        self.statuses = []
        self.keys = []
        self.usage = {"prompt_tokens": 300, "completion_tokens": 20}
        self.answer = oracle
        server = self

        class Chat(Handler):
            def do_POST(self):
                body = json.loads(self.body())
                server.requests.append(body)
                server.keys.append(self.headers.get("Authorization"))
                status = server.statuses.pop(0) if server.statuses else 200
                if status == HANG_UP:
                    self.close_connection = True
                    return
                data = b'{"error": "no\\nwith %s"}' % KEY.encode()
                if status == 200:
                    text = server.answer(*(m["content"] for m in body["messages"]))
                    value = {"choices": [{"message": {"content": text}}], "usage": server.usage}
                    data = json.dumps(value).encode()
                headers = {"Content-Type": "application/json", "Retry-After-Ms": "1"}  # no wait
                headers |= {"Location": "/elsewhere"} if status == 302 else {}
                self.head(200 if status == NO_CHAT else status, len(data), headers)
                self.wfile.write(data)

        super().__init__(Chat)
        self.url += "/v1"


def level(token):
    found = ORACLE_WORD.fullmatch(token.strip())
    return int(found[1]) if found else 0


def numbered(user):
    return re.findall(r"^(\d+)(?:\t|\. )(.*)$", user, flags=re.MULTILINE)


def oracle(system, user):
    if system == questions.EXPLAIN:
        return "Explanation: heat,\nby its degree"
    assert "Explanation: heat, by its degree\n" in user
    if system == questions.SIMULATE:
        return "\n".join(f"{n}\t{level(token)}" for n, token in numbered(user))
    return "\n".join(f"{n}\t{int('hot' in text)}" for n, text in numbered(user))


def constant(system, user):
    if system == questions.EXPLAIN:
        return "anything"
    value = 3 if system == questions.SIMULATE else 1
    return "\n".join(f"{n}\t{value}" for n, _ in numbered(user))


@pytest.fixture
def server():
    pytest.importorskip("openai")
    with ChatServer() as server:
        yield server


def settings_of(url, **changes):
    values = dict(
        base_url=url, model="m", api_key_env=None, price_in=None, price_out=None, max_cost=0,
        per_group=2, baselines=["neurons", "random"], width=8, examples=3, simulate=4, detect=6,
        parallel=1, timeout_s=5, retries=2, rows=1000, n_tokens=10**6,
    )  # fmt: skip
    return InterpConfig(**(values | changes))


def excerpt(*levels):
    tokens = tuple(f" hot{v}" if v else " cold" for v in levels)
    return Excerpt(tokens, np.array(levels, np.float32) / 2)


def case(name="a/0", group="features"):
    """Seven requests: an explanation, four simulations and two batches of detection."""
    return Case(
        group, name, 5.0, (excerpt(0, 10, 3), excerpt(1, 0, 0)),
        (excerpt(0, 7, 1), excerpt(0, 0, 0), excerpt(2, 2, 9), excerpt(5, 0, 0)),
        tuple(excerpt(0, v, 0) for v in (3, 0, 2, 0, 9, 0)),
    )  # fmt: skip


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("answer", "explanation", "simulation", "detection"),
    [(oracle, "heat, by its degree", 1, 1), (constant, "anything", 0, 0.5)],
    ids=["an oracle", "constant answers"],
)
def test_scores_of(server, tmp_path, answer, explanation, simulation, detection):
    server.answer = answer
    found = questions.ask([case()], settings_of(server.url), tmp_path / "answers.jsonl")
    (result,) = found.results
    assert (result["explanation"], result["detection"]) == (explanation, detection)
    assert result["simulation"] == pytest.approx(simulation)
    assert (result[UNREADABLE], found.stopped, len(server.requests)) == (0, None, 7)


def test_a_key_that_is_told_again_reaches_no_file_and_no_line(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_KEY", KEY)
    server.usage |= {"account": KEY}
    server.answer = lambda system, user: f"{KEY} {oracle(system, user)}"
    settings = settings_of(server.url, api_key_env="CHAT_KEY")
    (result,) = questions.ask([case()], settings, tmp_path / "answers.jsonl").results
    assert result["explanation"]
    assert server.keys == [f"Bearer {KEY}"] * len(server.requests)
    logged = errors._Record("x", logging.INFO, "", 0, "%s", ({"a": KEY},), None).getMessage()
    kept = (tmp_path / "answers.jsonl").read_text()
    assert "*** Explanation: heat" in kept
    for text in (kept, str(result), logged, str(UserError(KEY))):
        assert KEY not in text


def test_an_explanation_is_made_from_marked_tokens_and_integer_activations():
    text = questions.explain(case()).user
    assert "Excerpt 1:  cold<< hot10>><< hot3>>" in text
    assert 'Active: " hot10": 10, " hot3": 3' in text
    assert 'Active: " hot1": 1' in text


def test_scores_follow_their_formulas_and_are_undefined_without_contrast():
    x, y = [0, 1, 5, 2], [0.0, 0.5, 3.0, 3.0]
    assert questions.correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert np.isnan(questions.correlation([1, 2], [0, 0]))
    assert np.isnan(questions.correlation([], []))
    assert questions.balanced_accuracy([1, 1, 1, 0], [1, 0, 0, 0]) == pytest.approx((1 + 1 / 3) / 2)
    assert np.isnan(questions.balanced_accuracy([1, 0], [1, 1]))


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("1\t3\n2\t10", [3, 10]),
        ("```\n2: 0\n1: 4\n```", [4, 0]),
        ("1\t3", None),
        ("1\t3\n2\t11", None),
        ("1\t3\n2\t1\n2\t1", None),
        ("1\t3\n2\t1\n3\t0", None),
        ("I cannot tell", None),
        ("", None),
        ("1\t" + "9" * 5000 + "\n2\t1", None),
    ],
)
def test_numbers_are_read_only_if_each_line_is_there_once(answer, wanted):
    assert questions.read_numbers(answer, 2, 10) == wanted


def test_malformed_answers_are_counted_and_do_not_count(server, tmp_path):
    def sometimes(system, user):
        wrong = system == questions.SIMULATE and "hot7" in user
        return None if wrong else oracle(system, user)

    server.answer = sometimes
    (result,) = questions.ask([case()], settings_of(server.url), tmp_path / "a.jsonl").results
    assert result[UNREADABLE] == 1
    assert result["simulation"] == pytest.approx(1)
    server.answer = lambda system, user: ""
    settings = settings_of(server.url, model="silent")
    (result,) = questions.ask([case()], settings, tmp_path / "b.jsonl").results
    assert result[UNREADABLE] == 1
    assert np.isnan([result["simulation"], result["detection"]]).all()


def test_a_second_run_sends_nothing_and_finds_the_same(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    first = questions.ask([case(), case("b/1")], settings_of(server.url), path)
    sent = len(server.requests)
    second = questions.ask([case(), case("b/1")], settings_of(server.url), path)
    assert len(server.requests) == sent == 7  # both ask the same
    assert first.results == second.results
    assert {line["answer"] is None for line in lines(path)} == {False}
    assert lines(path)[0]["request"] == server.requests[0]


def test_a_line_that_a_kill_cut_short_is_asked_again_and_spoils_no_other(server, tmp_path):
    path = tmp_path / "answers.jsonl"
    questions.ask([case()], settings_of(server.url), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    (result,) = questions.ask([case()], settings_of(server.url), path).results
    assert result["detection"] == 1
    assert len(server.requests) == 8
    questions.ask([case()], settings_of(server.url), path)
    assert len(server.requests) == 8


def test_the_cap_is_never_passed_and_what_is_there_is_kept(server, tmp_path, caplog):
    path = tmp_path / "answers.jsonl"
    # An answer costs 0.00032 here; a question may cost more, by its bytes and longest answer.
    prices = {"price_in": 1.0, "price_out": 1.0}
    logged = []
    server.answer = lambda *texts: (logged.append(caplog.text), oracle(*texts))[1]
    settings = settings_of(server.url, max_cost=0.001, **prices)
    with caplog.at_level(logging.INFO):
        found = questions.ask([case()], settings, path)
    assert "7 requests" in logged[0]  # the estimate comes before anything is sent
    assert "interp.max_cost=0.001" in logged[0]
    assert not found.results
    assert "interp.max_cost=0.001" in found.stopped
    assert 0 < found.spent <= 0.001
    before = len(server.requests)
    assert before == len(lines(path)) == round(found.spent / 0.00032)
    again = questions.ask([case()], settings, path)  # what was spent before counts
    assert again.spent == pytest.approx(found.spent)
    assert len(server.requests) == before
    more = questions.ask([case()], settings_of(server.url, max_cost=1.0, **prices), path)
    assert more.results[0]["simulation"] == pytest.approx(1)
    assert len(server.requests) == 7


@pytest.mark.parametrize(
    ("changes", "usage", "delay"),
    [
        ({"max_cost": 0.0025, "parallel": 8}, {"prompt_tokens": 300, "completion_tokens": 20}, 0),
        # more than the server can have read
        ({"max_cost": 0.05}, {"prompt_tokens": 20_000, "completion_tokens": 0}, 0),
        # each attempt may have been billed: two would be within the cap, and not a third
        ({"max_cost": 0.0015, "timeout_s": 0.05}, None, 0.2),
    ],
    ids=["parallel requests", "a server that charges too much", "retries after timeouts"],
)
def test_the_cap_holds(server, tmp_path, changes, usage, delay):
    path = tmp_path / "a.jsonl"
    server.usage = usage
    server.answer = lambda *texts: (time.sleep(delay), oracle(*texts))[1]
    settings = settings_of(server.url, price_in=1.0, price_out=1.0, **changes)
    found = questions.ask(several(10), settings, path)
    assert settings.max_cost / 3 < found.spent <= settings.max_cost
    assert f"interp.max_cost={settings.max_cost}" in found.stopped
    assert found.spent == pytest.approx(sum(line["cost"] for line in lines(path)))
    assert len(lines(path)) == len(server.requests)


def test_without_usage_an_answer_is_charged_at_the_most_it_could_cost(server, tmp_path):
    server.usage = None
    settings = settings_of(server.url, price_in=1.0, price_out=2.0, max_cost=1.0)
    question = llm.Question("é", "abc", 50)
    with llm.Client(settings, tmp_path / "a.jsonl") as client:
        server.answer = lambda *_: "yes"
        assert client.ask(question) == "yes"
        assert client.spent == pytest.approx((5 + 2 * llm.MESSAGE_TOKENS + 2 * 50) / 1e6)


def test_a_server_that_is_busy_or_fails_is_asked_again(server, tmp_path):
    path = tmp_path / "a.jsonl"
    server.statuses = [429, HANG_UP, 503]
    prices = {"price_in": 1.0, "price_out": 0.0, "max_cost": 1.0}
    with llm.Client(settings_of(server.url, retries=3, **prices), path) as client:
        server.answer = lambda *_: "yes"
        assert client.ask(llm.Question("a", "b", 5)) == "yes"
    # What was not answered may have been billed; what was refused was not.
    assert [line["answer"] for line in lines(path)] == [None, "yes"]
    most = 2 + 2 * llm.MESSAGE_TOKENS
    assert [line["cost"] for line in lines(path)] == pytest.approx([most / 1e6, 300 / 1e6])
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "reason", "sent"),
    [
        (302, "refuses: 302 Found", 1), (400, "refuses: 400 Bad Request", 1),
        (401, "interp.api_key_env", 1), (404, "interp.model", 1), (429, "interp.retries", 3),
        (500, "refuses: 500 ", 3), (NO_CHAT, "no chat completion: is interp.base_url right", 1),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_without_the_key(server, tmp_path, monkeypatch, status, reason, sent):
    monkeypatch.setenv("CHAT_KEY", KEY)
    server.statuses = [status] * 9
    settings = settings_of(server.url, api_key_env="CHAT_KEY")
    found = questions.ask([case()], settings, tmp_path / "a.jsonl")
    assert reason in found.stopped
    assert "\n" not in found.stopped
    assert KEY not in found.stopped
    assert server.keys == [f"Bearer {KEY}"] * sent


@pytest.mark.parametrize(("variable", "sent"), [(None, None), ("CHAT_KEY", f"Bearer {KEY}")])
def test_the_key_that_is_named_is_sent_past_any_proxy_and_stored_nowhere(
    server, tmp_path, monkeypatch, variable, sent
):
    monkeypatch.setenv("CHAT_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    settings = settings_of(server.url, api_key_env=variable)
    assert questions.ask([case()], settings, tmp_path / "a.jsonl").stopped is None
    assert set(server.keys) == {sent}
    assert KEY not in (tmp_path / "a.jsonl").read_text()


def test_a_refused_connection_is_one_line(tmp_path):
    pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    settings = settings_of(url, retries=0, price_in=1.0, price_out=1.0, max_cost=1.0)
    found = questions.ask([case()], settings, tmp_path / "a.jsonl")
    assert "cannot be reached (ConnectError: [Errno 111] Connection refused)" in found.stopped
    assert "\n" not in found.stopped
    assert found.spent == 0


def several(n):
    return [replace(case(f"a/{i}"), examples=(excerpt(i + 1, 0), excerpt(1, 0))) for i in range(n)]


def test_of_many_cases_those_that_are_answered_are_kept_and_the_others_not_waited_for(
    server, tmp_path
):
    path = tmp_path / "a.jsonl"
    many = several(8)
    questions.ask(many[3:5], settings_of(server.url), path)
    server.statuses = [401] * 99
    found = questions.ask(many, settings_of(server.url, parallel=2), path)
    assert [result["feature"] for result in found.results] == ["a/3", "a/4"]
    assert "401" in found.stopped


@pytest.mark.slow
def test_after_an_interrupt_nothing_more_is_sent_and_the_same_command_goes_on(
    server, tmp_path, monkeypatch
):
    path, many = tmp_path / "a.jsonl", several(8)

    def interrupted(*_):
        raise KeyboardInterrupt

    def own_words(system, user):  # so that no two cases ask the same
        time.sleep(0.01)
        return user[:40] if system == questions.EXPLAIN else constant(system, user)

    server.answer = own_words
    settings = settings_of(server.url, parallel=2)
    with monkeypatch.context() as patch:
        patch.setattr(questions.Progress, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            questions.ask(many, settings, path)
    sent = len(server.requests)
    assert 7 <= sent == len(lines(path)) < 4 * 7
    found = questions.ask(many, settings, path)
    assert found.stopped is None
    assert len(found.results) == 8
    assert len(server.requests) == 8 * 7


def each(*scores):
    """The table of features with a group, a score of simulation and one of detection."""
    columns = ["group", "simulation", "detection"]
    return pd.DataFrame(scores, columns=columns).assign(feature="a/0", **{UNREADABLE: 0})


def test_means_have_their_intervals():
    scores = [("features", s, 0.5) for s in (0.1, 0.2, 0.6)]
    table = section.means(each(*scores))
    assert re.fullmatch(r"0\.30 \[0\.1\d?, 0\.\d+\]", table["simulation"][0])
    assert table["detection"][0] == "0.50 [0.50, 0.50]"
    assert section.means(each(scores[0]))["detection"][0] == "0.50"


@pytest.mark.parametrize(
    ("high", "random", "expected"),
    [(0.9, 0.5, HOLDS), (0.5, 0.9, FAILS), (0.6, 0.6, OPEN)],
)
def test_text_is_readable_if_explanations_of_features_beat_those_of_random_directions(
    base,  # noqa: F811
    high,
    random,
    expected,
):
    context = context_of(config(base))
    frame.measure(context)
    spread = np.linspace(-0.1, 0.1, 8)
    groups = {"features, MCS above 0.9": high, "random directions": random, "features, other": 1.0}
    scores = [(group, 0.3, mean + shift) for group, mean in groups.items() for shift in spread]
    context.tables.others["interp"] = each(*scores)
    claim = judge(section.CLAIMS[0], context.tables)
    assert claim.verdict == expected
    assert f"detection {high:.2f} against {random:.2f}" in claim.ours
    context.tables.others["interp"] = each(*scores[:10])
    claim = judge(section.CLAIMS[0], context.tables)
    assert claim.ours.startswith("only 8 features and 2 random directions")


def test_without_a_chat_model_the_reader_is_sent_to_the_text(base, tmp_path):  # noqa: F811
    context = context_of(full_config(base, tmp_path, None))
    frame.measure(context)
    (claim,) = context.claims = frame.verdicts(context, section.ANALYSIS)
    assert (claim.verdict, claim.interval) == (OPEN, None)
    assert "interp.base_url=" in claim.command
    assert not [b for b in claims.show(context) if isinstance(b, report.Link)]
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "features.html").write_text("x")
    page = report.render("t", "s", [report.Section("t", [*claims.show(context)])])
    assert '<a href="features.html">' in page


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "ftp://a/b"},
        {"base_url": "localhost:8000"},
        {"base_url": "http://user:word@localhost"},
        {"base_url": "http://localhost:port"},
        {"base_url": "https://api.example.com/v1"},  # prices are not given
        {"price_in": 1.0},  # no cap
        {"price_in": -1.0, "max_cost": 1.0},
        {"model": None},
        {"detect": 5},
        {"baselines": ["magic"]},
    ],
)
def test_settings_that_could_cost_unawares_or_make_no_sense_are_refused(changes):
    with pytest.raises(UserError, match=r"^interp\."):
        settings_of("http://localhost:1/v1", **changes)


def test_a_sparse_basis_keeps_the_positive_ones_of_the_largest_codes():
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    basis = bases.fit("random", x, seed=1)
    found, codes = interp_cases.sparse(basis, 2)(x), basis.encode(x)
    for row, all_codes in zip(found, codes, strict=True):
        largest = np.argsort(-np.abs(all_codes))[:2]
        wanted = np.zeros(6)
        wanted[largest] = np.maximum(all_codes[largest], 0)
        np.testing.assert_array_equal(row, wanted.astype(np.float32))


def full_config(base, folder, url):  # noqa: F811
    return config(base, analysis_dir=str(folder), interp=settings_of(url))


@pytest.fixture(scope="module")
def read(base):  # noqa: F811
    """The study, and its text."""
    context = tabled(full_config(base, base / "none", "http://localhost:1/v1"))
    return context, open_source(context.config, context.study, 10**6)


def test_held_out_excerpts_are_not_among_the_examples_and_hold_true_activations(read):
    cases, again = (interp_cases.cases(*read) for _ in range(2))
    assert [c.name for c in cases] == [c.name for c in again]
    assert questions.explain(cases[0]) == questions.explain(again[0])
    groups = pd.Series([c.group for c in cases]).value_counts()
    assert groups.to_dict() == {
        "features, other": 2, "neuron basis": 2, "random directions": 2,
    }  # fmt: skip
    for c in cases:
        examples = {e.tokens for e in c.examples}
        assert not examples & {e.tokens for e in [*c.simulate, *c.detect]}
        assert [e.values.max() > 0 for e in c.detect].count(True) == 3
        assert len({e.tokens for e in c.simulate}) == 4
        assert all(len(e.tokens) == len(e.values) == 8 for e in c.examples)


def test_activations_are_those_of_the_dictionary_on_every_token(read):
    context, source = read
    candidates = list(interp_cases._features(context, context.study.entries[:1]))
    codes = top_contexts.codes([code for *_, code in candidates], source, "x").toarray()
    rows = source.rows(slice(None)).reshape(-1, D)
    for (_, owner, code), found in zip(candidates, codes, strict=True):
        entry = next(e for e in context.study.entries if e.name == owner)
        wanted = entry.trained.dictionary.encode(rows)[:, code.index]
        np.testing.assert_allclose(found.ravel(), wanted, rtol=1e-4, atol=1e-5)


def test_the_report_has_explanations_and_means_and_escapes_them(base, server, tmp_path):  # noqa: F811
    def hostile(system, user):
        return "<script>alert(1)" if system == questions.EXPLAIN else constant(system, user)

    server.answer = hostile
    context = context_of(full_config(base, tmp_path, server.url))
    context.folder.mkdir()
    frame.measure(context)
    shown = frame.shown(context, section.ANALYSIS)
    page = report.render("t", "s", [shown])
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    table = pd.read_csv(context.folder / "interp.csv")
    assert len(table) == 6
    assert (table["detection"] == 0.5).all()
    means = shown.tables()[0].frame
    assert means["features"].tolist() == [2, 2, 2]
    assert means["detection"].tolist() == ["0.50 [0.50, 0.50]"] * 3
    assert (tmp_path / section.ANSWERS).exists()


def test_the_key_and_the_client_are_asked_for_only_where_an_endpoint_is_given(base, monkeypatch):  # noqa: F811
    monkeypatch.delenv("CHAT_KEY", raising=False)
    settings = full_config(base, base / "none", None)
    settings.sae_dir = str(base / "sae")
    settings.tracking = TrackingConfig("disabled", "p", None, [])
    settings.interp = replace(settings.interp, api_key_env="CHAT_KEY")
    stage.check(settings)
    settings.interp = replace(settings.interp, base_url="http://localhost:1/v1")
    with pytest.raises(UserError, match="CHAT_KEY is not set"):
        stage.check(settings)
    monkeypatch.setenv("CHAT_KEY", KEY)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[interp\]'"):
        stage.check(settings)
    settings.interp = None
    stage.check(settings)
