"""Alert channels: how alerts leave the host, and what they tell to whom.

To add one: a struct in `trainwarden.config` (its `tag` is the kind), a carrier here that sends one `Message`, and a
case in `_outlet`.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainwarden.config import ChannelConfig, Config, Email, OpenTelemetry, Prometheus, Webhook
from trainwarden.errors import UsageError
from trainwarden.respond.alerts.mail import MailCarrier
from trainwarden.respond.alerts.meter import Meter
from trainwarden.respond.alerts.otel import OtelCarrier, OtelOutlet
from trainwarden.respond.alerts.post import Post
from trainwarden.respond.alerts.prometheus import PrometheusOutlet
from trainwarden.respond.alerts.secrets import read_secret
from trainwarden.respond.alerts.webhook import WebhookCarrier
from trainwarden.supervise.responding import Outlet

__all__ = ["Meter", "Post", "outlets_of", "posts_of"]


def outlets_of(config: Config, meter: Meter) -> tuple[Outlet, ...]:
    """Every channel that `config` names, not opened yet; `meter` has the numbers for those that send numbers.

    Raises:
        UsageError: a channel's settings or its secret cannot be used, or two channels have one name.
        MissingExtra: a channel needs a package that is not installed.
    """
    names = [channel_name(channel) for channel in config.alerts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two alert channels are called {name}", hint='give each [[alerts]] a name = "…"')
    return tuple(_outlet(channel, meter) for channel in config.alerts)


def posts_of(outlets: Sequence[Outlet]) -> list[Post]:
    """Of these channels those that send messages."""
    return [o.post if isinstance(o, OtelOutlet) else o for o in outlets if isinstance(o, OtelOutlet | Post)]


def channel_name(channel: ChannelConfig) -> str:
    """What a channel is called: its name, else its kind."""
    return channel.name or str(channel.__struct_config__.tag)


def _outlet(channel: ChannelConfig, meter: Meter) -> Outlet:
    name = channel_name(channel)
    match channel:
        case Webhook():
            url = read_secret(name, "url", channel.url_env, channel.url_file)
            return Post(name, WebhookCarrier(name, url, channel.format), channel.audience, channel.severity)
        case Email():
            needed = bool(channel.user)
            password = read_secret(name, "password", channel.password_env, channel.password_file, needed=needed)
            server, login = (channel.host, channel.port), (channel.user, password)
            carrier = MailCarrier(name, server, channel.security, channel.sender, channel.to, login)
            return Post(name, carrier, channel.audience, channel.severity)
        case OpenTelemetry():
            told = read_secret(name, "headers", channel.headers_env, channel.headers_file, needed=False)
            headers = _headers(name, told)
            post = Post(name, OtelCarrier(name, channel.endpoint, headers), channel.audience, channel.severity)
            return OtelOutlet(post, channel.endpoint, headers, channel.every_seconds, meter, channel.audience)
        case Prometheus():
            return PrometheusOutlet(channel, meter)


def _headers(channel: str, text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"alert channel {channel}: its headers are not of the form name=value,name=value")
        headers[name.strip().lower()] = value.strip()
    return headers
