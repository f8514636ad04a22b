"""The same limit for each proxy, and what came of it at the backends."""

from proxies import Envoy, Evenkeel, HAProxy

LOCAL_RATE_LIMIT = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"

# What none of the proxies here reaches: the rule decides and never refuses.
NEVER = 1_000_000


def resource(rate, burst):
    """The `ratelimit` of an Evenkeel: one resource that every request draws on."""
    return {"resources": [{"match": "all", "capacity": rate, "per": "1s", "burst": burst}],
            "apply": [{"direction": "outbound", "service": "echo", "resource": "all"}]}


def requests_of_all(rate):
    """HAProxy's own example: a stick table with the rate of requests, those that are refused among them."""
    return ["stick-table type integer size 1k expire 10s store http_req_rate(1s)",
            "http-request track-sc0 int(1)",
            f"http-request deny deny_status 429 if {{ sc0_http_req_rate gt {rate} }}"]


def requests_admitted(rate):
    """The same with a counter of its own, which goes up only for what is let through."""
    return ["stick-table type integer size 1k expire 10s store gpc0,gpc0_rate(1s)",
            "http-request track-sc0 int(1)",
            f"http-request deny deny_status 429 if {{ sc0_gpc0_rate ge {rate} }}",
            "http-request sc-inc-gpc0(0)"]


def tokens(rate, burst):
    """Envoy's token bucket, filled ten times a second."""
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return [{"name": "envoy.filters.http.local_ratelimit", "typed_config": {
        "@type": f"type.googleapis.com/{LOCAL_RATE_LIMIT}", "stat_prefix": "limit",
        "token_bucket": {"max_tokens": max(burst, rate // 10), "tokens_per_fill": rate // 10, "fill_interval": "0.1s"},
        "filter_enabled": {"runtime_key": "enabled", **always},
        "filter_enforced": {"runtime_key": "enforced", **always}}}]


def proxy(tools, work, arm, servers, rate, burst):
    """By the arm's name: the proxy, and how it limits; without a comma it does not."""
    name, _, how = arm.partition(", ")
    if name == "evenkeel":
        return Evenkeel(tools, work, "evenkeel-limit" if how else "evenkeel", backends=servers,
                        ratelimit=resource(rate, burst) if how else None)
    if name == "haproxy":
        rules = {"": [], "http_req_rate": requests_of_all(rate), "gpc0_rate": requests_admitted(rate)}[how]
        return HAProxy(tools, work, servers, "random(2)", rules, "-".join(filter(None, ["haproxy", how])))
    return Envoy(tools, work, servers, filters=tokens(rate, burst) if how else (), name="envoy-" + (how or "plain"))


def busiest(times, window_s=1.0):
    """The most within any window of this length; `times` are sorted."""
    first, most = 0, 0
    for last, at in enumerate(times):
        while at >= times[first] + window_s:
            first += 1
        most = max(most, last - first + 1)
    return most
