"""Alerts reach those who should know, say no more than they may, and hold nothing up."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from receivers import HttpReceiver, SmtpReceiver, dead_port, running

from trainwarden.config import Config, Email, OpenTelemetry, Prometheus, Webhook, load_config
from trainwarden.errors import MissingExtra, UsageError
from trainwarden.model import (
    Action,
    Alert,
    Confidence,
    Finding,
    Gap,
    Severity,
    Stage,
    StepRecord,
    Undelivered,
    UnitAudited,
    UnitKind,
    UnitResult,
)
from trainwarden.respond.alerts import Meter, outlets_of, posts_of
from trainwarden.respond.alerts.mail import MailCarrier
from trainwarden.respond.alerts.post import MAX_WAITING, Post
from trainwarden.respond.alerts.secrets import without_secrets
from trainwarden.respond.alerts.webhook import WebhookCarrier
from trainwarden.respond.alerts.words import message
from trainwarden.supervise.responding import Told

FINDING = Finding(
    detector="replicas",
    severity=Severity.HIGH,
    confidence=Confidence.MEDIUM,
    seen="At step 12 ranks 0 and 1 have different weights (h.3.attn.weight), from /shared/optim.py <&>.",
    expected="Ranks hold the same values.",
    step=12,
    ranks=(0, 1),
    stage=Stage.WEIGHTS,
    tensor="h.3.attn.weight",
    benign=("faulty memory",),
    wall_ns=1_700_000_000_123_456_789,
)
ALERT = Alert(
    id="a3",
    severity=Severity.HIGH,
    confidence=Confidence.MEDIUM,
    title=FINDING.seen,
    first=FINDING,
    findings=(41,),
    detectors=("replicas",),
    ranks=(0, 1),
    first_step=12,
    last_step=12,
    benign=("faulty memory",),
)
RUN = "20260101-000000-abcd"
TOLD = Told(RUN, ALERT, Action.STOP)
HELPS_THE_ATTACKER = ("12", "replicas", "weights", "h.3.attn", "optim.py", "rank", "faulty", "17000000", "41", "2023")


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with running(HttpReceiver) as r:
        yield r


def post(url: str, audience: str = "team", form: str = "slack", **kwargs: object) -> Post:
    return Post("hook", WebhookCarrier("hook", url, form), audience, waits=(0.01, 0.01), **kwargs)  # type: ignore[arg-type]


def sent(outlet: Post, *told: Told) -> list[Undelivered]:
    """What was not delivered when these were told."""
    failed: list[Undelivered] = []
    outlet.open(RUN, failed.append)
    for one in told:
        outlet.tell(one)
    outlet.close()
    return failed


# --------------------------------------------------------------------------- what is said to whom


@pytest.mark.parametrize("form", ["slack", "json"])
def test_the_team_is_told_nothing_that_helps_an_attacker(receiver: HttpReceiver, form: str) -> None:
    assert sent(post(receiver.url, form=form), TOLD) == []
    told = receiver.bodies[0].decode()
    rest = told.replace(RUN, "").replace(f"trainwarden show {RUN}", "")
    assert [word for word in HELPS_THE_ATTACKER if word in rest] == []
    assert RUN in told
    assert "severity" in told
    assert "high" in told


def test_an_update_tells_the_team_no_more_than_the_first_alert() -> None:
    first, again = message(TOLD, "team"), message(Told(RUN, ALERT, Action.STOP, update=True), "team")
    assert again.fields.keys() == first.fields.keys()
    assert all(word not in again.text.replace(RUN, "") for word in HELPS_THE_ATTACKER)


def test_security_is_told_everything(receiver: HttpReceiver) -> None:
    assert sent(post(receiver.url, "security", "json"), TOLD) == []
    body = receiver.json[0]
    assert body["alert"]["first"]["tensor"] == "h.3.attn.weight"
    assert body["action"] == "stop"
    assert all(word in message(TOLD, "security").text for word in ("replicas", "step 12", "ranks 0, 1", "41", "faulty"))


def test_slack_reads_names_of_the_job_as_text(receiver: HttpReceiver) -> None:
    sent(post(receiver.url, "security"), TOLD)
    assert list(receiver.json[0]) == ["text"]
    assert "optim.py &lt;&amp;&gt;" in receiver.json[0]["text"]


def test_control_characters_of_the_job_are_not_passed_on() -> None:
    alert = Alert(**{f: getattr(ALERT, f) for f in ALERT.__struct_fields__} | {"title": "a\x1b[2J\nSubject: b"})
    assert "\x1b" not in message(Told(RUN, alert, Action.ALERT), "security").text
    assert "\nSubject" not in message(Told(RUN, alert, Action.ALERT), "security").text


def test_an_alert_below_the_channels_severity_is_not_sent(receiver: HttpReceiver) -> None:
    low = Alert(**{f: getattr(ALERT, f) for f in ALERT.__struct_fields__} | {"severity": Severity.LOW})
    outlet = Post("hook", WebhookCarrier("hook", receiver.url, "json"), least=Severity.MEDIUM)
    sent(outlet, Told(RUN, low, Action.ALERT), TOLD)
    assert [body["severity"] for body in receiver.json] == ["high"]


# --------------------------------------------------------------------------- receivers that fail


def test_a_flaky_receiver_gets_it_in_the_end() -> None:
    with running(lambda: HttpReceiver(503, 200)) as receiver:
        assert sent(post(receiver.url), TOLD) == []
        assert len(receiver.bodies) == 2


def test_a_receiver_that_refuses_for_good_is_told_once_and_counted() -> None:
    with running(lambda: HttpReceiver(404)) as receiver:
        failed = sent(post(receiver.url), TOLD, TOLD, TOLD)
    assert [f.alerts for f in failed] == [1, 3]
    assert {f.reason for f in failed} == {"the receiver answered with status 404"}


def test_a_dead_receiver_is_told_without_its_address() -> None:
    port = dead_port()
    failed = sent(post(f"http://127.0.0.1:{port}/services/T0/B0/token"), TOLD)
    assert [f.alerts for f in failed] == [1, 1]
    assert all(secret not in str(failed) for secret in (str(port), "token", "services"))


def test_a_slow_receiver_holds_up_neither_the_teller_nor_the_end() -> None:
    with running(HttpReceiver) as receiver:
        receiver.slow = True
        outlet, failed = post(receiver.url, close_seconds=0.3), []
        outlet.open(RUN, failed.append)
        for _ in range(MAX_WAITING + 10):
            outlet.tell(TOLD)
        receiver.wait(1)
        assert len(receiver.bodies) == 1
        outlet.close()
        assert [f.alerts for f in failed] == [MAX_WAITING + 10]


def test_a_redirect_is_not_followed() -> None:
    with running(lambda: HttpReceiver(302)) as receiver:
        failed = sent(post(receiver.url), TOLD)
        assert receiver.paths == ["/services/T0/B0/token"]
    assert failed[0].reason == "the receiver answered with status 302"


# --------------------------------------------------------------------------- mail


def mail(port: int, user: str = "", password: str = "") -> Post:
    server = ("127.0.0.1", port)
    carrier = MailCarrier("mail", server, "none", "tw@example.org", ["sec@example.org"], (user, password))
    return Post("mail", carrier, "security", waits=(0.01,))


def test_mail_arrives_with_its_details() -> None:
    login = base64.b64encode(b"\0me\0secret")
    with running(lambda: SmtpReceiver(login)) as receiver:
        assert sent(mail(receiver.port, "me", "secret"), TOLD) == []
        assert receiver.logins == [login]
        (text,) = receiver.mails
    assert f"Subject: TrainWarden: high: run {RUN}, alert a3" in text
    assert "h.3.attn.weight" in text


def test_a_wrong_password_is_told_and_not_repeated() -> None:
    with running(lambda: SmtpReceiver(b"other")) as receiver:
        failed = sent(mail(receiver.port, "me", "secret"), TOLD)
        assert len(receiver.logins) == 1
    assert failed[0].reason == "the mail server does not take the user and password"


def test_a_mail_server_that_is_busy_or_gone_is_told() -> None:
    with running(lambda: SmtpReceiver(greet=b"421 busy")) as receiver:
        assert "code 421" in sent(mail(receiver.port), TOLD)[0].reason
    assert "cannot be reached" in sent(mail(dead_port()), TOLD)[0].reason


def test_starttls_is_not_given_up_when_the_server_does_not_offer_it() -> None:
    with running(SmtpReceiver) as receiver:
        carrier = MailCarrier("mail", ("127.0.0.1", receiver.port), "starttls", "a@b.c", ["d@e.f"], ("", ""))
        failed = sent(Post("mail", carrier), TOLD)
        assert receiver.mails == []
    assert "does not offer" in failed[0].reason


# --------------------------------------------------------------------------- numbers


def counted(meter: Meter) -> None:
    meter.open(RUN)
    meter.seen(0, StepRecord(attempt=0, rank=0, world=1, step=7, optimizer=0, seq=0, stages={}, wall_ns=5_000_000_000))
    meter.seen(1, FINDING)
    meter.seen(2, Gap(attempt=0, rank=0, step=8, reason="x"))
    meter.seen(3, UnitAudited(attempt=0, step=7, rank=0, kind=UnitKind.NEAR, result=UnitResult.MATCHED))
    meter.told(TOLD)


def test_prometheus_fetches_numbers_without_the_detector() -> None:
    meter = Meter()
    counted(meter)
    (outlet,) = outlets_of(Config(alerts=(Prometheus(listen=f"127.0.0.1:{dead_port()}"),)), meter)
    outlet.open(RUN, lambda entry: None)
    with urllib.request.urlopen(f"http://127.0.0.1:{outlet.port}/metrics", timeout=30) as answer:  # type: ignore[attr-defined]
        text = answer.read().decode()
    outlet.close()
    assert f'trainwarden_findings_total{{run="{RUN}",severity="high"}} 1.0' in text
    assert f'trainwarden_alerts_total{{action="stop",run="{RUN}",severity="high"}} 1.0' in text
    assert f'trainwarden_last_step{{run="{RUN}"}} 7.0' in text
    assert f'trainwarden_gaps_total{{run="{RUN}"}} 1.0' in text
    assert f'trainwarden_audit_coverage{{run="{RUN}"}} 1.0' in text
    assert "replicas" not in text


def test_prometheus_reads_a_file_that_is_whole_at_the_end(tmp_path: Path) -> None:
    meter, path = Meter(), tmp_path / "run.prom"
    (outlet,) = outlets_of(Config(alerts=(Prometheus(textfile=str(path), audience="security"),)), meter)
    outlet.open(RUN, lambda entry: None)
    counted(meter)
    outlet.close()
    assert 'detector="replicas"' in path.read_text()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (outlet,) = outlets_of(Config(alerts=(Prometheus(textfile=str(tmp_path / "no" / "run.prom")),)), Meter())
    failed: list[Undelivered] = []
    outlet.open(RUN, failed.append)
    outlet.close()
    assert "cannot write" in failed[0].reason


def test_opentelemetry_gets_the_alert_as_a_log_record_and_numbers_as_metrics(
    receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    monkeypatch.setenv("TW_TEST_HEADERS", "Authorization=Bearer abc")
    meter = Meter()
    counted(meter)
    endpoint = receiver.url.partition("/services")[0]
    config = Config(alerts=(OpenTelemetry(endpoint=endpoint, headers_env="TW_TEST_HEADERS", audience="security"),))
    (outlet,) = outlets_of(config, meter)
    failed: list[Undelivered] = []
    outlet.open(RUN, failed.append)
    outlet.tell(TOLD)
    outlet.close()
    assert failed == []
    at = dict(zip(receiver.paths, zip(receiver.bodies, receiver.headers, strict=True), strict=True))
    logs = ExportLogsServiceRequest.FromString(at["/v1/logs"][0])
    record = logs.resource_logs[0].scope_logs[0].log_records[0]
    assert record.severity_text == "high"
    assert "h.3.attn.weight" in record.body.string_value
    assert at["/v1/logs"][1]["authorization"] == "Bearer abc"
    metrics = ExportMetricsServiceRequest.FromString(at["/v1/metrics"][0])
    names = {m.name for m in metrics.resource_metrics[0].scope_metrics[0].metrics}
    assert {"trainwarden_findings", "trainwarden_alerts", "trainwarden_last_step"} <= names


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http._log_exporter", None)
    with pytest.raises(MissingExtra) as caught:
        outlets_of(Config(alerts=(OpenTelemetry(endpoint="http://127.0.0.1:1"),)), Meter())
    assert caught.value.hint == "pip install 'trainwarden[otel]'"


# --------------------------------------------------------------------------- settings and secrets


def test_settings_come_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("https://hooks.example/x\n")
    (tmp_path / "trainwarden.toml").write_text(
        f"""
        [[alerts]]
        kind = "webhook"
        name = "team chat"
        url_env = "TEAM_URL"

        [[alerts]]
        kind = "webhook"
        audience = "security"
        url_file = "{tmp_path / "secret"}"
        severity = "medium"
        """
    )
    monkeypatch.setenv("TEAM_URL", "https://hooks.example/y")
    config = load_config(None, tmp_path)
    assert [p.name for p in posts_of(outlets_of(config, Meter()))] == ["team chat", "webhook"]
    assert without_secrets({"TEAM_URL": "x", "A": "b"}, config) == {"A": "b"}


@pytest.mark.parametrize(
    ("channel", "says"),
    [
        (Webhook(), "say where its url is"),
        (Webhook(url_env="TW_NOT_SET"), "empty or not set"),
        (Webhook(url_file="/nowhere/at/all"), "cannot read the file"),
        (Webhook(url_env="TW_PLAIN"), "not encrypted"),
        (Webhook(url_env="TW_WRONG"), "not an http(s) URL"),
        (Email(host="mail.example", sender="a@b", to=("c@d",), security="none"), "would not be encrypted"),
        (Email(host="mail.example", sender="a@b", to=("c@d",), user="me"), "say where its password is"),
        (Prometheus(), "say where the numbers go"),
        (Prometheus(listen="9464"), "is no address"),
    ],
)
def test_a_channel_that_cannot_work_is_an_error_before_the_start(
    channel: Webhook | Email | Prometheus, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TW_PLAIN", "http://hooks.example/secret-part")
    monkeypatch.setenv("TW_WRONG", "secret-part")
    with pytest.raises(UsageError) as caught:
        outlets_of(Config(alerts=(channel,)), Meter())
    assert says in str(caught.value)
    assert "secret-part" not in f"{caught.value} {caught.value.hint}"


def test_a_secret_in_the_configuration_itself_is_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "trainwarden.toml"
    path.write_text('[[alerts]]\nkind = "webhook"\nurl = "https://hooks.example/x"\n')
    with pytest.raises(UsageError, match="unknown field `url`"):
        load_config(path, tmp_path)


def test_messages_are_plain_json() -> None:
    for audience in ("team", "security"):
        fields = message(TOLD, audience).fields
        again = json.loads(json.dumps(fields))
        assert again.keys() == fields.keys()
        assert (again["run"], again["audience"], again["text"]) == (RUN, audience, fields["text"])
